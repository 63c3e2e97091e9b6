"""Brings files into the kernel's page cache with several readers, so that whoever maps them later never waits for the disk.

A mapped file is read by page faults, one small piece after the other; no disk is at its fastest then. Needs nothing but Python, so
it may begin before the heavy imports.
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
    """Reads what is not in the page cache yet, and returns the bytes of it. Returns when all is there. Raises OSError."""
    blocks = [(file, start) for file in files for start in range(0, file.stat().st_size, BLOCK)]
    share = -(-len(blocks) // READERS) or 1
    with ThreadPoolExecutor(READERS) as readers:
        return sum(readers.map(_read_blocks, (blocks[begin : begin + share] for begin in range(0, len(blocks), share))))


def _read_blocks(blocks: list[tuple[Path, int]]) -> int:
    scratch, read = bytearray(), 0  # filled with zeros, which costs more than all the rest where nothing has to be read
    for file, start in blocks:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            if not is_cached(descriptor, start, min(BLOCK, os.fstat(descriptor).st_size - start)):
                scratch = scratch or bytearray(BLOCK)
                read += os.preadv(descriptor, [scratch], start)
        finally:
            os.close(descriptor)
    return read


def is_cached(descriptor: int, start: int, length: int) -> bool:
    """Whether the first, the middle and the last byte of a stretch are in the page cache. False where the file system cannot tell."""
    try:
        return all(os.preadv(descriptor, [bytearray(1)], start + at, os.RWF_NOWAIT) == 1 for at in (0, length // 2, length - 1))
    except OSError:  # not there, or not known here
        return False
