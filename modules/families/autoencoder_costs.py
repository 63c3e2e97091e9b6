"""What an ``AutoencoderKL`` costs, by its configuration and its tensors. Pure, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from backend.checkpoints.header import Shape, parameters
from backend.planning.model_specs import BYTES_PER_PARAMETER, Cost, Curve

ENCODE_MAPS, DECODE_MAPS = 5, 3
"""How many maps of the first, and of the widest, full-size layer there are at once: counted on the real class without
data, and measured on the emulated device."""
DECODE_MAPS_16_BIT = 5
"""In 16 bits, which is for a GPU, as many again are kept free for the workspace of cuDNN's convolutions. Assumed."""

PUBLISHED_AUTOENCODER = {
    "encode_image": Cost(Curve(linear=1300), Curve(linear=4.33e12 / 1024**2, square=0.5)),
    "decode": Cost(Curve(linear=2600), Curve(linear=9.92e12 / 1024**2, square=0.5)),
}
"""Of the one with 128, 256, 512 and 512 channels, in 16 bits, that Flux, SDXL and SD 1.5 have."""

LEVEL = re.compile(r"(encoder|decoder)\.(?:(down|up)_blocks\.(\d+)\.(\w+)|(\w+))")


def autoencoder_dtype(config: Mapping[str, Any], dtype: str) -> str:
    """``dtype``, or "fp32" for an autoencoder that is loaded in it because it overflows in fp16
    (``modules/families/autoencoder.py``); ``config`` is its ``config.json``."""
    return "fp32" if dtype == "fp16" and config.get("force_upcast") else dtype


def autoencoder_costs(channels: Sequence[int], work: tuple[Curve, Curve], dtype: str) -> dict[str, Cost]:
    """ "encode_image" and "decode" of one picture (x: pixels). ``channels`` are ``block_out_channels``; ``work`` is
    :func:`autoencoder_work`."""
    item = BYTES_PER_PARAMETER[dtype]
    maps = DECODE_MAPS if dtype == "fp32" else DECODE_MAPS_16_BIT
    return {
        "encode_image": Cost(Curve(linear=ENCODE_MAPS * channels[0] * item), work[0]),
        "decode": Cost(Curve(linear=maps * channels[min(1, len(channels) - 1)] * item), work[1]),
    }


def autoencoder_work(shapes: Mapping[str, Shape], channels: Sequence[int]) -> tuple[Curve, Curve]:
    """Operations to encode and to decode a picture (x: pixels): convolutions by the size at which they run, and the
    attention of the smallest size."""
    smallest = len(channels) - 1
    linear = {"encoder": 0.0, "decoder": 0.0}
    square = dict(linear)
    for name, shape in shapes.items():
        if found := LEVEL.match(name):
            linear[found[1]] += 2 * parameters(shape) / 4 ** _level(found, smallest)
            if name.startswith(f"{found[1]}.mid_block.attentions."):
                square[found[1]] = 4 * channels[-1] / 16**smallest
    return Curve(0, linear["encoder"], square["encoder"]), Curve(0, linear["decoder"], square["decoder"])


def _level(found: re.Match[str], smallest: int) -> int:
    """How often the picture is halved where this tensor is used."""
    side, direction, index, part, elsewhere = found.groups()
    if direction:
        level = int(index) if direction == "down" else smallest - int(index)
        return level + (part == "downsamplers") - (part == "upsamplers")
    whole = {"encoder": "conv_in", "decoder": "conv_out"}[side]
    return 0 if elsewhere == whole else smallest
