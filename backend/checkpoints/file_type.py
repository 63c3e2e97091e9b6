"""What a weight file really is, told by its bytes and never by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from backend.checkpoints.config import MAX_TABLE
from backend.checkpoints.entries import MAX_HEADER
from backend.checkpoints.folder_files import SUFFIXES
from backend.checkpoints.gguf_file import is_gguf, read_gguf_header
from backend.core.data_files import DataError, read_json, require_regular
from backend.core.errors import WeightsError

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
AGAIN = "get the file again"


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a header that fits into it, and JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and length <= min(MAX_HEADER, path.stat().st_size - 8)


def is_pickle(path: Path) -> bool:
    """Whether the file begins as what torch saves does: a zip archive, or a bare pickle of protocol 2 or later.

    The length of every 32nd safetensors header begins with a pickle's byte. What could be either counts as safetensors,
    which every loader here asks first, and reads without running anything.
    """
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and not is_safetensors(path))


def check_content(path: Path, name: str) -> None:
    """Holds the file's bytes against what its suffix promises, by its header alone; nothing of it is run.

    Raises :class:`WeightsError`, which names the file.
    """
    try:
        require_regular(path)
    except DataError as problem:
        raise WeightsError(f"{name}: {problem}; {AGAIN}") from None
    suffix = Path(name).suffix.lower()
    if is_gguf(path):
        try:
            read_gguf_header(path)
        except DataError as problem:
            raise WeightsError(f"{name}: {problem}; {AGAIN}") from None
    elif suffix in (*SUFFIXES, ".gguf"):
        if is_pickle(path):
            raise WeightsError(f"{name}: is a pickle under the name of a {suffix[1:]} file; {AGAIN}")
        check_safetensors(path, name)
    elif suffix in PICKLE_SUFFIXES and not is_pickle(path) and not is_safetensors(path):
        raise WeightsError(f"{name}: is damaged or not what torch saves; {AGAIN}")
    elif suffix == ".json":
        try:
            read_json(path, MAX_TABLE)
        except DataError as problem:
            raise WeightsError(f"{name}: {problem}; {AGAIN}") from None


def check_safetensors(path: Path, name: str) -> None:
    """Reads the header: every tensor has a known type and its own bytes, and together they are the whole file."""
    try:
        with safe_open(path, framework="numpy") as opened:
            opened.keys()
    except (SafetensorError, OSError):
        raise WeightsError(f"{name}: is damaged, cut off or no safetensors file; {AGAIN}") from None


def digest(path: Path) -> str:
    """SHA-256 of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_digest(path: Path) -> str:
    """What git, and so the hub for its small files, calls the content: SHA-1 over a short head and the bytes."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
