"""What a file of weights says of each of its tensors, whatever its format. Pure, without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.core.data_files import DataError

MAX_HEADER = 100_000_000
"""Bytes of the longest header."""
MAX_TENSORS, MAX_SIDE = 100_000, 2**40
"""Of one file, and of one tensor."""

Shape = tuple[int, ...]

GGUF_BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "Q2_K": (256, 84),
        "Q3_K": (256, 110),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
        "IQ4_NL": (32, 18),
        "IQ4_XS": (256, 136),
    }
)
"""The quantized formats of GGUF files that are read: weights of a block, and its bytes."""
FP8_FORMATS = ("F8_E4M3", "F8_E5M2")
ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
        **dict.fromkeys(("F32", "I32", "U32"), 4),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
    }
)
"""Bytes of a number in the other formats."""

WEIGHTS_AT_ONCE = 2**23
"""Packed weights that are dequantized at a time, so that their values in float32 take little room beside the result."""


@dataclass(frozen=True)
class Entry:
    """One tensor as a file has it: the file, its number format ("F16", "Q4_K"), its shape as torch writes it, and where
    its bytes begin in the file."""

    file: Path
    format: str
    shape: Shape
    start: int = 0

    @property
    def bytes(self) -> int:
        return stored_bytes(self.format, self.shape)


class UnsupportedError(DataError):
    """The file is whole, and holds weights in a form that is not read."""


def parameters(shape: Shape) -> int:
    """How many numbers a tensor of this shape has."""
    count = 1
    for side in shape:
        count *= side
    return count


def stored_bytes(format: str, shape: Shape) -> int:
    """How many bytes a tensor takes in a file."""
    if format in GGUF_BLOCKS:
        weights, size = GGUF_BLOCKS[format]
        return parameters(shape) // weights * size
    return parameters(shape) * ITEM_BYTES.get(format, 1)


def check_shapes(shapes: Mapping[str, Any]) -> None:
    """Raises :class:`DataError` for more tensors than a file has, and for shapes that no tensor has."""
    if len(shapes) > MAX_TENSORS:
        raise DataError(f"is damaged (its header names {len(shapes)} tensors)")
    if not all(type(side) is int and 0 <= side <= MAX_SIDE for shape in shapes.values() for side in shape):
        raise DataError("is damaged (its header holds a shape that no tensor has)")
    check_numbering(shapes)


def check_numbering(names: Collection[str]) -> None:
    """Raises :class:`DataError` for a block with a number that so few tensors cannot reach: ``body.100000000.weight``.
    Libraries build as many blocks as the highest number says."""
    most = 1000 + 10 * len(names)
    for name in names:
        if any(part.isdecimal() and (len(part) > 9 or int(part) > most) for part in name.split(".")):
            raise DataError(f"is damaged (it holds {len(names)} tensors, and one is called '{name[:60]}')")
