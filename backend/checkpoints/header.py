"""What a safetensors file holds, by its header alone: names, shapes, number formats and metadata of the tensors.

Pure, without torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.core.data_files import DataError, parse_json, require_regular
from backend.core.errors import WeightsError

MAX_HEADER = 100_000_000
"""Bytes of the longest header that the format allows."""
MAX_TENSORS, MAX_SIDE = 100_000, 2**40
"""Of one file, and of one tensor."""
PRECISIONS = {
    "F32": "fp32",
    "BF16": "bf16",
    "F16": "fp16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
}
"""The format's names of number formats, and ours."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """Shapes and number formats by tensor name, and the file's own remarks."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The format that most weights are stored in: "fp16", or the file's own name for another; "" without any."""
        counts: dict[str, int] = {}
        for name, shape in self.shapes.items():
            counts[self.formats[name]] = counts.get(self.formats[name], 0) + parameters(shape)
        most = max(counts, key=lambda name: counts[name], default="")
        return PRECISIONS.get(most, most)


def parameters(shape: Shape) -> int:
    """How many numbers a tensor of this shape has."""
    count = 1
    for side in shape:
        count *= side
    return count


def read_header(file: Path) -> Header:
    """Raises :class:`WeightsError` for a damaged file."""
    try:
        require_regular(file)
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > MAX_HEADER:
                raise DataError(f"is damaged (its header claims {length} bytes)")
            entries = parse_json(opened.read(length))
        return _header(entries)
    except (DataError, OSError) as problem:
        told = problem if isinstance(problem, DataError) else f"cannot be read ({problem.strerror})"
        raise WeightsError(f"{file.parent.name}/{file.name} {told}; restore the model folder") from None


def _header(entries: Mapping[str, Any]) -> Header:
    """What the header says. Raises :class:`DataError` for what no file can hold."""
    metadata = entries.get("__metadata__", {})
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    if len(tensors) > MAX_TENSORS:
        raise DataError(f"is damaged (its header names {len(tensors)} tensors)")
    try:
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
        formats = {name: str(entry["dtype"]) for name, entry in tensors.items()}
    except (TypeError, KeyError):
        raise DataError("is damaged (its header is incomplete)") from None
    if not isinstance(metadata, dict) or not all(
        type(side) is int and 0 <= side <= MAX_SIDE for shape in shapes.values() for side in shape
    ):
        raise DataError("is damaged (its header holds a shape that no tensor has)")
    check_numbering(shapes)
    return Header(shapes, formats, metadata)


def check_numbering(names: Collection[str]) -> None:
    """Raises :class:`DataError` for a block with a number that so few tensors cannot reach: ``body.100000000.weight``.
    Libraries build as many blocks as the highest number says."""
    most = 1000 + 10 * len(names)
    for name in names:
        if any(part.isdecimal() and (len(part) > 9 or int(part) > most) for part in name.split(".")):
            raise DataError(f"is damaged (it holds {len(names)} tensors, and one is called '{name[:60]}')")


def read_headers(files: Iterable[Path]) -> Header:
    """Those of all files as one. A tensor that two files hold counts once."""
    shapes: dict[str, Shape] = {}
    formats: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        shapes |= header.shapes
        formats |= header.formats
        metadata |= header.metadata
    return Header(shapes, formats, metadata)
