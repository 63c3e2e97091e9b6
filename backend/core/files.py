"""Files that are never seen half-written, and names that are safe for files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder."""
PART_PATTERN = ".*.part"
"""Temporary names, as a glob. Only a killed process leaves one behind."""
MAX_NAME_BYTES = 100
"""Longer names, with what is added to them, would not fit every file system."""


@contextmanager
def atomic_files(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary files beside ``targets``, in the same order, for the block to write.

    When the block ends, each is flushed to the disk and renamed, so that under its name a file is whole, also after a
    power cut. When the block raises, no target has changed and the temporary files are deleted.
    """
    parts = [target.with_name(f".{target.name}.{os.getpid()}.part") for target in targets]
    try:
        yield parts
        for part in parts:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        for part, target in zip(parts, targets, strict=True):
            part.replace(target)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_atomic(target: Path, content: bytes | str) -> None:
    """Writes one file by :func:`atomic_files`; text in UTF-8."""
    with atomic_files([target]) as [part]:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def is_safe_name(name: str) -> bool:
    """Whether a name given by a user can name a file: letters, digits, ``.``, ``-`` and ``_``, not hidden, no path."""
    return bool(re.fullmatch(r"\w[\w.-]*", name)) and len(name.encode()) <= MAX_NAME_BYTES
