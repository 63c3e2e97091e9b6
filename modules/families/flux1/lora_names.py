"""How LoRA files for FLUX.1 name its layers: black-forest-labs' names, and XLabs' names of the attention's parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from modules.families.flux1.single_file import DOUBLE, EMBEDDERS, SINGLE
from modules.lora.names import CLIP, T5, Layers, LoraNames, Target

BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")
Fused = Mapping[str, Sequence[str]]
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
FUSED_DOUBLE: Fused = {
    "img_attn.qkv": QKV,
    "txt_attn.qkv": TEXT_QKV,
    "processor.qkv_lora1": QKV,
    "processor.qkv_lora2": TEXT_QKV,
}
FUSED_SINGLE: Fused = {"linear1": (*QKV, "proj_mlp"), "processor.qkv": QKV}
"""Layers of which the file has one in place of several."""
XLABS_DOUBLE = {"processor.proj_lora1": "attn.to_out.0", "processor.proj_lora2": "attn.to_add_out"}
XLABS_SINGLE = {"processor.proj": "proj_out"}


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
        exchanged = ((half, 2 * half), (0, half))
        yield "final_layer.adaLN_modulation.1", Target(component, "norm_out.linear", exchanged)
    for kind, index in {(found[1], int(found[2])) for path in layers if (found := BLOCK.fullmatch(path))}:
        own = f"{kind}.{index}"
        double = kind == "transformer_blocks"
        theirs = f"{'double' if double else 'single'}_blocks.{index}"
        for name, path in ({**DOUBLE, **XLABS_DOUBLE} if double else {**SINGLE, **XLABS_SINGLE}).items():
            yield f"{theirs}.{name}", Target(component, f"{own}.{path}")
        for name, paths in (FUSED_DOUBLE if double else FUSED_SINGLE).items():
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
