"""The two hashes of a LoRA's file: of all bytes, and of the tensors alone, by which WebUIs and Civitai know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

PIECE = 2**20


@dataclass(frozen=True)
class Digests:
    """In hexadecimal digits.

    Attributes:
        sha256: Of the whole file.
        tensors: SHA-256 of what follows the header. WebUIs call its first 12 digits the hash of a LoRA, Civitai calls
            them AutoV3: they stay the same when only remarks in the file change.
    """

    sha256: str
    tensors: str


def digests(path: Path) -> Digests:
    """Of a safetensors file. Raises OSError."""
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        begin = file.read(8)
        header = file.read(int.from_bytes(begin, "little"))
        whole.update(begin + header)
        while piece := file.read(PIECE):
            whole.update(piece)
            tensors.update(piece)
    return Digests(whole.hexdigest(), tensors.hexdigest())


@dataclass
class DigestMemo:
    """The hashes of files that have not changed since they were computed, because reading a file takes a second."""

    _known: dict[tuple[str, int, int], Digests] = field(default_factory=dict)

    def of(self, path: Path) -> Digests:
        """Raises OSError."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = digests(path)
        return self._known[key]
