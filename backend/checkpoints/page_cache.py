"""Brings files into the kernel's page cache with several readers, so that whoever maps them later never waits for the
disk.

A mapped file is read by page faults, one small piece after the other; no disk is at its fastest then. Needs nothing but
Python, so it may begin before the heavy imports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 2**24
READERS = 4
"""More than that gains nothing on a disk that keeps its own queue; each holds one block of memory."""


def read_ahead(files: Iterable[Path]) -> int:
    """Reads what is not in the page cache yet, and returns the bytes of it. Returns when all is there. Raises
    OSError."""
    missing = [(file, start) for file in files for start in _missing(file)]
    if not missing:  # the usual case, in which readers would take longer to start than to find nothing to do
        return 0
    share = -(-len(missing) // READERS)
    with ThreadPoolExecutor(READERS) as readers:
        return sum(readers.map(_read, (missing[begin : begin + share] for begin in range(0, len(missing), share))))


def _missing(file: Path) -> list[int]:
    """Where the blocks of a file begin that are not in the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return [start for start in range(0, size, BLOCK) if not is_cached(descriptor, start, min(BLOCK, size - start))]
    finally:
        os.close(descriptor)


def _read(blocks: list[tuple[Path, int]]) -> int:
    scratch, read = bytearray(BLOCK), 0
    for file, start in blocks:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            read += os.preadv(descriptor, [scratch], start)
        finally:
            os.close(descriptor)
    return read


def is_cached(descriptor: int, start: int, length: int) -> bool:
    """Whether the first, the middle and the last byte of a stretch are in the page cache. False where the file
    system cannot tell."""
    try:
        return all(
            os.preadv(descriptor, [bytearray(1)], start + at, os.RWF_NOWAIT) == 1 for at in (0, length // 2, length - 1)
        )
    except OSError:  # not there, or not known here
        return False
