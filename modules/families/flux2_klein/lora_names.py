"""How LoRA files for FLUX.2 name its layers: black-forest-labs' names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modules.lora.names import Layers, LoraNames, Target

EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
}
DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
"""Layers of which the file has one in place of three."""
SINGLE = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.")


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
        yield "final_layer.adaLN_modulation.1", Target(component, "norm_out.linear", ((half, 2 * half), (0, half)))
    for kind, index in sorted({(found[1], int(found[2])) for path in layers if (found := BLOCK.match(path))}):
        own = f"{kind}.{index}"
        double = kind == "transformer_blocks"
        theirs = f"{'double' if double else 'single'}_blocks.{index}"
        for name, path in (DOUBLE if double else SINGLE).items():
            yield f"{theirs}.{name}", Target(component, f"{own}.{path}")
        for name, paths in FUSED.items() if double else ():
            rows = layers[f"{own}.{paths[0]}"][0]  # all three are of the same size
            for place, path in enumerate(paths):
                yield f"{theirs}.{name}", Target(component, f"{own}.{path}", ((place * rows, (place + 1) * rows),))


LORA_NAMES = LoraNames({"text_encoder": ("text_encoder_",)}, aliases)
