"""Which files beside an ONNX file it takes weights from, read from its own bytes before a library opens it.

ONNX is a protocol buffer. Only the fields on the way to a tensor's ``external_data`` are followed, so neither onnx nor
protobuf is needed: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from backend.core.data_files import DataError, require_regular

MAX_DEPTH = 64
"""Of graphs and attributes inside each other."""
MAX_FIELDS = 2_000_000
"""Of all messages that are followed. A YOLO has some thousands."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NO_MODEL = "is damaged or not an ONNX model"
MAX_TEXT = 4096
"""Bytes of a path that are read."""
EXTERNAL_DATA = 13
"""Field of a tensor."""

Message = Literal["model", "training", "function", "graph", "node", "attribute", "tensor", "sparse"]
FOLLOWED: Mapping[Message, Mapping[int, Message]] = MappingProxyType(
    {
        "model": {7: "graph", 20: "training", 25: "function"},
        "training": {1: "graph", 2: "graph"},
        "function": {7: "node", 11: "attribute"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {},
    }
)
"""By message the fields in which a tensor can lie, and what they hold."""


class External(NamedTuple):
    """A part of another file. ``length`` is None for all that follows ``offset``."""

    location: str
    offset: int
    length: int | None


def check_external_data(path: Path) -> None:
    """Raises :class:`DataError` for an ONNX file that is damaged, or takes weights from a file outside of its folder,
    from none, or from behind the end of one."""
    require_regular(path)
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise DataError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for external in _Walk(content).externals(range(len(content)), "model"):
                _check(path, external)


def _check(path: Path, external: External) -> None:
    name = external.location
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise DataError(f"takes weights from a file outside of its folder, '{name[:60]}'")
    beside = path.parent / name
    if not beside.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"takes weights from '{name[:60]}', a link to a file outside of its folder")
    try:
        size = require_regular(beside)
    except (FileNotFoundError, DataError):
        raise DataError(f"takes weights from '{name[:60]}', and there is no such file beside it") from None
    if external.offset < 0 or external.offset + max(external.length or 0, 0) > size:
        raise DataError(f"takes weights from '{name[:60]}', which is cut off")


class _Walk:
    """One walk through the messages of a file. A message is the range of its bytes."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.fields_left = content, MAX_FIELDS

    def externals(self, place: range, message: Message, depth: int = 0) -> Iterator[External]:
        """What the tensors in a message take from other files."""
        if depth > MAX_DEPTH:
            raise DataError(f"is nested more than {MAX_DEPTH} deep")
        entries: dict[str, str] = {}
        for field, value in self.fields(place):
            inner = FOLLOWED[message].get(field)
            if inner:
                yield from self.externals(value, inner, depth + 1)
            elif message == "tensor" and field == EXTERNAL_DATA:
                pair = {number: self.text(part) for number, part in self.fields(value)}
                entries[pair.get(1, "")] = pair.get(2, "")
        if entries:
            yield _external(entries)

    def fields(self, place: range) -> Iterator[tuple[int, range]]:
        """The fields of a message that hold bytes, in their order. Raises :class:`DataError`."""
        position = place.start
        while position < place.stop:
            self.fields_left -= 1
            key, position = self.number(position)
            kind = key & 7
            length = {FIXED64: 8, FIXED32: 4}.get(kind, 0)
            if kind == VARINT:
                _, position = self.number(position)
            elif kind == BYTES:
                length, position = self.number(position)
            elif not length:
                raise DataError(NO_MODEL)
            if position + length > place.stop or self.fields_left < 0:
                raise DataError(NO_MODEL)
            if kind == BYTES:
                yield key >> 3, range(position, position + length)
            position += length

    def number(self, position: int) -> tuple[int, int]:
        """A number of variable length, and where it ends."""
        value = shift = 0
        while position < len(self.content) and shift < 70:
            byte = self.content[position]
            value |= (byte & 0x7F) << shift
            position += 1
            shift += 7
            if byte < 0x80:
                return value, position
        raise DataError(NO_MODEL)

    def text(self, place: range) -> str:
        return self.content[place.start : min(place.stop, place.start + MAX_TEXT)].decode(errors="replace")


def _external(entries: Mapping[str, str]) -> External:
    try:
        length = entries.get("length")
        return External(entries.get("location", ""), int(entries.get("offset", "0")), int(length) if length else None)
    except ValueError:
        raise DataError("is damaged (the place of its weights is not a number)") from None
