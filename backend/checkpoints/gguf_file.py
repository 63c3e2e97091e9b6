"""The header of a GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Pure, without torch.

A header is not believed: every count and length is held against the bytes that are there before anything is read or
allocated by it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from backend.checkpoints.entries import (
    GGUF_BLOCKS,
    ITEM_BYTES,
    MAX_HEADER,
    MAX_TENSORS,
    Entry,
    Shape,
    UnsupportedError,
    check_shapes,
    parameters,
)
from backend.core.data_files import DataError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT, MAX_ALIGNMENT = 32, 2**16
MAX_SIDES = 8
"""Of a tensor's shape. llama.cpp writes four, tools for video models five."""
KEPT_TEXT, KEPT_NUMBERS = 1000, 16
"""Longer texts and lists (a tokenizer's words) are passed over."""
NUMBERS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
"""How the kinds of values are written, as :mod:`struct` has it; besides them there are text and lists."""
TEXT, LIST = 8, 9
FORMATS: Mapping[int, str] = MappingProxyType(
    {
        0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
        12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
        20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
        29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    }
)  # fmt: skip
"""The number formats by their codes, also those that are not read, so that they can be named."""
PARTS = "split.count"
"""Where a file says into how many its model was split."""
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Where ComfyUI-GGUF keeps the shape of a tensor that it had to store in another one."""


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of the file by name, and its remarks. Raises :class:`DataError`."""
    with path.open("rb") as file:
        reader = _Reader(file, path.stat().st_size)
        version = reader.magic_and_version()
        if version not in VERSIONS:
            known = version < 2**16
            raise UnsupportedError(f"is a GGUF file of version {version}" if known else "is a big-endian GGUF file")
        tensors, remarks = reader.count(24), reader.count(12)
        metadata = dict(reader.remark() for _ in range(remarks))
        if metadata.get(PARTS, "1") not in ("0", "1"):
            raise UnsupportedError(f"is one of {metadata[PARTS][:20]} parts of a GGUF file")
        entries = [reader.tensor(path) for _ in range(tensors)]
        return _placed(entries, reader.at, reader.size, metadata), metadata


class _Reader:
    """Reads the header from its beginning; ``at`` is where it stands, ``size`` how long the file is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def take(self, length: int) -> bytes:
        self._advance(length)
        return self.file.read(length)

    def skip(self, length: int) -> None:
        self._advance(length)
        self.file.seek(self.at)

    def _advance(self, length: int) -> None:
        self.at += length
        if self.at > min(self.size, MAX_HEADER):
            raise DataError("is damaged or cut off (its header is longer than the file or than any)")

    def number(self, kind: str) -> int | float:
        size = struct.calcsize(f"<{kind}")
        value: int | float = struct.unpack(f"<{kind}", self.take(size))[0]
        return value

    def whole(self, kind: str) -> int:
        return int(self.number(kind))

    def magic_and_version(self) -> int:
        if self.take(4) != MAGIC:
            raise DataError("is no GGUF file")
        return self.whole("I")

    def count(self, least: int) -> int:
        """How many things follow that take at least so many bytes each."""
        count = self.whole("Q")
        if count > MAX_TENSORS or count * least > self.size - self.at:
            raise DataError(f"is damaged (its header claims {count} entries)")
        return count

    def text(self) -> str:
        length = self.whole("Q")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise DataError("is damaged (a name in its header is not UTF-8)") from None

    def remark(self) -> tuple[str, str]:
        """A key and its value in words; "" for what is too long to be of use here."""
        key, kind = self.text(), self.whole("I")
        if kind == TEXT:
            value = self.text()
            return key, value if len(value) <= KEPT_TEXT else ""
        if kind == LIST:
            return key, self._list()
        return key, str(self.number(self._kind(kind)))

    def _list(self) -> str:
        kind, count = self.whole("I"), self.whole("Q")
        if kind == TEXT:
            if count * 8 > self.size - self.at:
                raise DataError(f"is damaged (its header claims a list of {count} texts)")
            for _ in range(count):
                self.skip(self.whole("Q"))
            return ""
        number = self._kind(kind)
        if count > KEPT_NUMBERS:
            self.skip(count * struct.calcsize(f"<{number}"))
            return ""
        return ",".join(str(self.number(number)) for _ in range(count))

    @staticmethod
    def _kind(kind: int) -> str:
        if kind not in NUMBERS:
            raise DataError(f"is damaged (its header holds a value of the unknown kind {kind})")
        return NUMBERS[kind]

    def tensor(self, path: Path) -> tuple[str, Entry]:
        """A tensor's name and entry, which begins where the data of all begin."""
        name, sides = self.text(), self.whole("I")
        if sides > MAX_SIDES:
            raise DataError(f"is damaged (the tensor '{name[:60]}' has {sides} dimensions)")
        shape = tuple(reversed([self.whole("Q") for _ in range(sides)]))  # GGUF has the neighbouring numbers first
        code, start = self.whole("I"), self.whole("Q")
        return name, Entry(path, FORMATS.get(code, f"of the unknown type {code}"), shape, start)


def _alignment(metadata: Mapping[str, str]) -> int:
    text = metadata.get("general.alignment", str(ALIGNMENT))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_ALIGNMENT or int(text) & (int(text) - 1):
        raise DataError(f"is damaged (an alignment of {text[:20]})")
    return int(text)


def _placed(found: list[tuple[str, Entry]], header: int, size: int, metadata: Mapping[str, str]) -> dict[str, Entry]:
    """The entries with their places in the file, and in their original shapes; the header takes so many bytes."""
    alignment = _alignment(metadata)
    start = -(-header // alignment) * alignment
    entries = dict(found)
    if len(entries) < len(found):
        raise DataError("is damaged (two tensors have the same name)")
    if not entries:
        raise DataError("is a GGUF file without tensors")
    check_shapes({name: entry.shape for name, entry in entries.items()})
    placed = {}
    for name, entry in entries.items():
        if entry.format not in GGUF_BLOCKS and entry.format not in ITEM_BYTES:
            raise UnsupportedError(f"stores weights as {entry.format}")
        weights = GGUF_BLOCKS.get(entry.format, (1, 1))[0]
        if (entry.shape[-1] if entry.shape else 1) % weights:
            raise DataError(f"is damaged (rows of '{name[:60]}' are no whole blocks of {entry.format})")
        if entry.start % alignment or start + entry.start + entry.bytes > size:
            raise DataError(f"is damaged or cut off ('{name[:60]}' lies beyond its end)")
        shape = _original_shape(name, entry.shape, metadata)
        placed[name] = Entry(entry.file, entry.format, shape, start + entry.start)
    return placed


def _original_shape(name: str, shape: Shape, metadata: Mapping[str, str]) -> Shape:
    text = metadata.get(ORIGINAL_SHAPE + name)
    if not text:
        return shape
    original = tuple(int(side) if side.isdecimal() else -1 for side in text.split(","))
    if min(original) < 0 or parameters(original) != parameters(shape):
        raise DataError(f"is damaged (the original shape of '{name[:60]}' has another size)")
    return original
