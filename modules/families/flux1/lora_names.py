"""How LoRA files for FLUX.1 name its layers: black-forest-labs' names, and XLabs' names of the attention's parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from modules.families.flux1.single_file import DOUBLE, EMBEDDERS, SINGLE
from modules.lora.names import CLIP, T5, Layers, LoraNames, Target

BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")
FUSED_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
FUSED_SINGLE = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
XLABS_DOUBLE = {"proj_lora1": "attn.to_out.0", "proj_lora2": "attn.to_add_out"}
XLABS_FUSED_DOUBLE = {"qkv_lora1": FUSED_DOUBLE["img_attn.qkv"], "qkv_lora2": FUSED_DOUBLE["txt_attn.qkv"]}
XLABS_SINGLE = {"proj": "proj_out"}
XLABS_FUSED_SINGLE = {"qkv": ("attn.to_q", "attn.to_k", "attn.to_v")}


def aliases(component: str, layers: Layers) -> Iterator[tuple[str, Target]]:
    """Further names of the transformer's layers."""
    if component != "transformer":
        return
    for theirs, path in EMBEDDERS.items():
        if path in layers:
            yield theirs, Target(component, path)
    if "norm_out.linear" in layers:
        half = layers["norm_out.linear"][0] // 2
        # diffusers has the scale first
        swapped = ((half, 2 * half), (0, half))
        yield "final_layer.adaLN_modulation.1", Target(component, "norm_out.linear", swapped)
    for kind, index in {(found[1], int(found[2])) for path in layers if (found := BLOCK.fullmatch(path))}:
        own = f"{kind}.{index}"
        double = kind == "transformer_blocks"
        theirs = f"{'double' if double else 'single'}_blocks.{index}"
        for name, path in (DOUBLE if double else SINGLE).items():
            yield f"{theirs}.{name}", Target(component, f"{own}.{path}")
        for name, path in (XLABS_DOUBLE if double else XLABS_SINGLE).items():
            yield f"{theirs}.processor.{name}", Target(component, f"{own}.{path}")
        fused = {**FUSED_DOUBLE} if double else {**FUSED_SINGLE}
        xlabs = XLABS_FUSED_DOUBLE if double else XLABS_FUSED_SINGLE
        fused |= {f"processor.{name}": paths for name, paths in xlabs.items()}
        for name, paths in fused.items():
            for target in _pieces(component, [f"{own}.{path}" for path in paths], layers):
                yield f"{theirs}.{name}", target


def _pieces(component: str, paths: Sequence[str], layers: Layers) -> Iterator[Target]:
    """Layers that stand below each other in one matrix of the file."""
    begin = 0
    for path in paths:
        end = begin + layers[path][0]
        yield Target(component, path, ((begin, end),))
        begin = end


LORA_NAMES = LoraNames({"text_encoder": CLIP, "text_encoder_2": T5}, aliases)
