"""How LoRA files for SDXL and SD 1.5 name the UNet's layers: as diffusers does, or as the models' first code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modules.lora.names import CLIP, CLIP_G, Layers, LoraNames, Target

TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
PART = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")
"""Block, its kind of part, the part's number, and the layer in it."""


def aliases(component: str, layers: Layers) -> Iterator[tuple[str, Target]]:
    """The first code's names of the UNet's layers."""
    if component != "unet":
        return
    parts = [found for path in layers if (found := PART.fullmatch(path))]
    # residual parts of a block on the way down; one more on the way up
    residual = 1 + max((int(found[4]) for found in parts if found[1] == "down" and found[3] == "resnets"), default=0)
    attending = {int(found[2]) for found in parts if found[1] == "up" and found[3] == "attentions"}
    for path in layers:
        if path in TOP:
            yield TOP[path], Target(component, path)
        elif found := PART.fullmatch(path):
            yield _original(found, residual, attending), Target(component, path)


def _original(found: re.Match[str], residual: int, attending: set[int]) -> str:
    way, block, kind, number = found[1], int(found[2] or 0), found[3], int(found[4])
    inner = RESNET.get(found[5], found[5]) if kind == "resnets" else found[5]
    each = residual + 1
    if way is None:
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{inner}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * each}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{(block + 1) * each - 1}.{1 + (block in attending)}.{inner}"
    of_block = int(kind == "attentions")
    if way == "down":
        return f"input_blocks.{1 + block * each + number}.{of_block}.{inner}"
    return f"output_blocks.{block * each + number}.{of_block}.{inner}"


LORA_NAMES = LoraNames({"text_encoder": CLIP, "text_encoder_2": CLIP_G}, aliases)
