"""What a safetensors file holds, by its header alone: names, shapes, number formats and metadata of the tensors.

Pure, without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.core.errors import WeightsError

MAX_HEADER = 100_000_000
"""Bytes of the longest header that the format allows."""
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
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER:
            raise WeightsError(f"{file.name} is damaged (its header claims {length} bytes); restore the model folder")
        entries = parsed(opened.read(length), file.name)
    metadata = entries.pop("__metadata__", {})
    try:
        return Header(
            {name: tuple(entry["shape"]) for name, entry in entries.items()},
            {name: entry["dtype"] for name, entry in entries.items()},
            metadata,
        )
    except (TypeError, KeyError):
        raise WeightsError(f"{file.name} is damaged (its header is incomplete); restore the model folder") from None


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises :class:`WeightsError` that names the file when it is missing or
    damaged."""
    try:
        return parsed(path.read_bytes(), f"{path.parent.name}/{path.name}")
    except FileNotFoundError:
        raise WeightsError(
            f"{path.parent.name}/{path.name} is missing; restore the model folder, or choose another 'model' in "
            "config_optimized.json"
        ) from None


def parsed(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises :class:`WeightsError` that names the file."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise WeightsError(f"{name} is damaged (not JSON); restore the model folder") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{name} is damaged (no JSON object); restore the model folder")
    return data
