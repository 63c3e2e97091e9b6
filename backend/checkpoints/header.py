"""What files of weights hold, by their headers alone: names, shapes, number formats and metadata of the tensors.

A file is safetensors or GGUF by its first bytes, whatever its name. Pure, without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.checkpoints.encodings import Encoding, find_encodings
from backend.checkpoints.entries import (
    FP8_FORMATS,
    GGUF_BLOCKS,
    MAX_HEADER,
    Entry,
    Shape,
    UnsupportedError,
    check_numbering,
    check_shapes,
    parameters,
    stored_bytes,
)
from backend.checkpoints.gguf_file import is_gguf, read_gguf_header
from backend.checkpoints.gguf_names import transformers_names
from backend.core.data_files import DataError, parse_json, require_regular
from backend.core.errors import WeightsError

__all__ = ["Header", "Shape", "check_numbering", "parameters", "read_header", "read_headers"]

PRECISIONS: Mapping[str, str] = MappingProxyType(
    {
        "F32": "fp32",
        "BF16": "bf16",
        "F16": "fp16",
        "F8_E4M3": "fp8",
        "F8_E5M2": "fp8",
        "NF4": "nf4",
        "FP4": "fp4",
        "I8": "int8",
    }
)
"""The files' names of number formats, and ours."""
OTHER_FORM = "take the model in bf16, fp16, fp8, NF4 of bitsandbytes, or as GGUF from Q2_K to Q8_0"
MAX_TEXT = 2**16
"""Bytes of a tensor that is a JSON text."""


@dataclass(frozen=True)
class Header:
    """Shapes and number formats of a model's weights by name, and the file's own remarks.

    A weight that the file stores in several tensors counts as one: ``encodings`` says how it is stored. ``entries`` are
    the tensors themselves.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    entries: Mapping[str, Entry] = field(default_factory=dict, repr=False)
    encodings: Mapping[str, Encoding] = field(default_factory=dict, repr=False)

    def packed_bytes(self, item_bytes: float) -> float:
        """Bytes that a parameter of the blocks takes where quantized matrices stay as the file has them, and the others
        take ``item_bytes`` each; 0 for a file without quantized matrices."""
        blocks = {name: shape for name, shape in self.shapes.items() if "block" in name}
        packed = {name: shape for name, shape in blocks.items() if _is_packed(self.formats[name], shape)}
        if not packed:
            return 0
        others = sum(parameters(shape) for name, shape in blocks.items() if name not in packed)
        stored = sum(_packed_bytes(self.formats[name], shape) for name, shape in packed.items())
        return (stored + item_bytes * others) / sum(map(parameters, blocks.values()))

    @property
    def precision(self) -> str:
        """The format that most weights are stored in: "fp16", or the file's own name for another; "" without any."""
        counts: dict[str, int] = {}
        for name, shape in self.shapes.items():
            counts[self.formats[name]] = counts.get(self.formats[name], 0) + parameters(shape)
        most = max(counts, key=lambda name: counts[name], default="")
        return PRECISIONS.get(most, most)


def _is_packed(format: str, shape: Shape) -> bool:
    """Whether ``backend/checkpoints/packed_weight.py`` keeps such a matrix."""
    return len(shape) == 2 and (format in GGUF_BLOCKS or format in FP8_FORMATS or format in ("NF4", "FP4", "I8"))


def _packed_bytes(format: str, shape: Shape) -> float:
    """With the scales of its rows, or of blocks of 64 weights."""
    if format in ("NF4", "FP4"):
        return parameters(shape) * (0.5 + 4 / 64)
    return stored_bytes(format, shape) + (0 if format in GGUF_BLOCKS else 4 * shape[0])


def read_header(file: Path) -> Header:
    """Raises :class:`WeightsError` for a damaged file."""
    return read_headers([file])


def read_headers(files: Iterable[Path], as_stored: bool = False) -> Header:
    """Those of all files as one. A tensor that two files hold counts once. With ``as_stored`` every tensor is named as
    the files have it, also the parts of quantized weights.

    Raises :class:`WeightsError` for a damaged file, and for weights in a form that is not read.
    """
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    file = Path()
    try:
        for file in files:
            found, remarks = _read(file)
            entries |= found
            metadata |= remarks
        return _header(entries, metadata, as_stored)
    except UnsupportedError as problem:
        raise WeightsError(f"{file.parent.name}/{file.name} {problem}, which is not read; {OTHER_FORM}") from None
    except (DataError, OSError) as problem:
        told = problem if isinstance(problem, DataError) else f"cannot be read ({problem.strerror})"
        raise WeightsError(f"{file.parent.name}/{file.name} {told}; restore the model folder") from None


def _read(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of one file and its metadata. Raises :class:`DataError` and OSError."""
    require_regular(file)
    if not is_gguf(file):
        return _read_safetensors(file)
    entries, metadata = read_gguf_header(file)
    return {name: entries[own] for own, name in transformers_names(list(entries)).items()}, metadata


def _read_safetensors(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER:
            raise DataError(f"is damaged (its header claims {length} bytes)")
        header = parse_json(opened.read(length))
    metadata: Any = header.pop("__metadata__", {})
    tensors: Mapping[str, Any] = header
    try:
        entries = {
            name: Entry(file, str(tensor["dtype"]), tuple(tensor["shape"]), 8 + length + int(tensor["data_offsets"][0]))
            for name, tensor in tensors.items()
        }
    except (TypeError, KeyError, IndexError, ValueError):
        raise DataError("is damaged (its header is incomplete)") from None
    check_shapes({name: entry.shape for name, entry in entries.items()})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DataError("is damaged (its metadata are no texts)")
    return entries, metadata


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str], as_stored: bool) -> Header:
    encodings: Mapping[str, Encoding] = {}
    extra: frozenset[str] = frozenset()
    if not as_stored:
        encodings, extra = find_encodings(entries, metadata, lambda name: _json_text(entries[name]))
    own = {name: entry for name, entry in entries.items() if name not in extra}
    shapes = {name: encodings[name].shape if name in encodings else entry.shape for name, entry in own.items()}
    formats = {name: encodings[name].format if name in encodings else entry.format for name, entry in own.items()}
    return Header(shapes, formats, metadata, entries, encodings)


def _json_text(entry: Entry) -> dict[str, object]:
    """What a tensor of bytes says in JSON."""
    if entry.format != "U8" or entry.bytes > MAX_TEXT:
        raise DataError("is damaged (what describes its weights is no text)")
    with entry.file.open("rb") as opened:
        opened.seek(entry.start)
        return parse_json(opened.read(entry.bytes))
