"""The values of the number formats that GGUF files have.

A block holds 32 or 256 neighbouring weights of a row: their scales, and a few bits for each. The layouts are those of
llama.cpp (https://github.com/ggml-org/llama.cpp, ``ggml/src/ggml-common.h``). Every function takes blocks as rows of
bytes (uint8, blocks x bytes of a block) and returns their values in float32, blocks x weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from backend.checkpoints.entries import GGUF_BLOCKS

Values = Callable[[torch.Tensor], torch.Tensor]
LevelValues = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

NONLINEAR_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 4 bits of a weight stand for in the IQ4 formats."""


def gguf_values(blocks: torch.Tensor, format: str, levels: torch.Tensor | None = None) -> torch.Tensor:
    """The values of whole rows: uint8, rows x bytes of a row, to float32, rows x weights. ``levels`` are those of the
    format as a tensor on the same device; a format that has none needs none."""
    of_blocks = blocks.reshape(-1, GGUF_BLOCKS[format][1])
    if format in LEVEL_DECODERS:
        if levels is None:
            levels = torch.tensor(NONLINEAR_LEVELS, dtype=torch.float32, device=blocks.device)
        values = LEVEL_DECODERS[format](of_blocks, levels)
    else:
        values = DECODERS[format](of_blocks)
    return values.reshape(blocks.shape[0], -1)


def _bits(packed: torch.Tensor, width: int, group: int) -> torch.Tensor:
    """Unpacks numbers of ``width`` bits. In every group of bytes the lowest bits of all bytes come first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).view(1, 1, -1, 1)
    spread = packed.reshape(packed.shape[0], -1, 1, group) >> shifts
    return (spread & ((1 << width) - 1)).flatten(1)


def _half(packed: torch.Tensor) -> torch.Tensor:
    return packed.contiguous().view(torch.float16).float()


def _scaled(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiplies neighbouring values by a scale for each group of them."""
    product: torch.Tensor = values.unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(2)
    return product.flatten(1)


def _q4_0(block: torch.Tensor) -> torch.Tensor:
    return (_bits(block[:, 2:], 4, 16).float() - 8) * _half(block[:, :2])


def _q4_1(block: torch.Tensor) -> torch.Tensor:
    return _bits(block[:, 4:], 4, 16) * _half(block[:, :2]) + _half(block[:, 2:4])


def _q5_0(block: torch.Tensor) -> torch.Tensor:
    values = _bits(block[:, 6:], 4, 16) | _bits(block[:, 2:6], 1, 1) << 4
    return (values.float() - 16) * _half(block[:, :2])


def _q5_1(block: torch.Tensor) -> torch.Tensor:
    values = _bits(block[:, 8:], 4, 16) | _bits(block[:, 4:8], 1, 1) << 4
    return values * _half(block[:, :2]) + _half(block[:, 2:4])


def _q8_0(block: torch.Tensor) -> torch.Tensor:
    return block[:, 2:].view(torch.int8) * _half(block[:, :2])


def _q2_k(block: torch.Tensor) -> torch.Tensor:
    scales, mins = _bits(block[:, :16], 4, 16).chunk(2, dim=1)
    values = _scaled(_bits(block[:, 16:80], 2, 32), scales * _half(block[:, 80:82]))
    return values - (mins * _half(block[:, 82:])).repeat_interleave(16, dim=1)


def _q3_k(block: torch.Tensor) -> torch.Tensor:
    low, high = _bits(block[:, 96:104], 4, 8), _bits(block[:, 104:108], 2, 4)
    scales = (low | high << 4).float() - 32
    values = (_bits(block[:, 32:96], 2, 32) | _bits(block[:, :32], 1, 32) << 2).float() - 4
    return _scaled(values, scales * _half(block[:, 108:]))


def _scales_and_mins(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minima of 6 bits each, in 12 bytes."""
    first, second, rest = packed.split(4, dim=1)
    scales = torch.cat([first & 63, (rest & 15) | (first >> 6 << 4)], dim=1)
    mins = torch.cat([second & 63, (rest >> 4) | (second >> 6 << 4)], dim=1)
    return scales, mins


def _affine_k(block: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    scales, mins = _scales_and_mins(block[:, 4:16])
    offsets = mins * _half(block[:, 2:4])
    return _scaled(values, scales * _half(block[:, :2])) - offsets.repeat_interleave(32, dim=1)


def _q4_k(block: torch.Tensor) -> torch.Tensor:
    return _affine_k(block, _bits(block[:, 16:], 4, 32))


def _q5_k(block: torch.Tensor) -> torch.Tensor:
    return _affine_k(block, _bits(block[:, 48:], 4, 32) | _bits(block[:, 16:48], 1, 32) << 4)


def _q6_k(block: torch.Tensor) -> torch.Tensor:
    values = (_bits(block[:, :128], 4, 64) | _bits(block[:, 128:192], 2, 32) << 4).float() - 32
    return _scaled(values, block[:, 192:208].view(torch.int8) * _half(block[:, 208:]))


def _iq4_nl(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return levels[_bits(block[:, 2:], 4, 16).int()] * _half(block[:, :2])


def _iq4_xs(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    scales = (_bits(block[:, 4:8], 4, 1) | _bits(block[:, 2:4], 2, 1) << 4).float() - 32
    return _scaled(levels[_bits(block[:, 8:], 4, 16).int()], scales * _half(block[:, :2]))


DECODERS: Mapping[str, Values] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }
)
LEVEL_DECODERS: Mapping[str, LevelValues] = MappingProxyType({"IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs})
"""Of the formats whose bits are indexes into levels."""
