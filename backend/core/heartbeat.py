"""How another process sees whether work goes on: a file that is there while something is computed, and whose time is
that of the last progress."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE = "progress"
"""In the scratch folder of a worker."""


class Heartbeat:
    """Writes the file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work begins here; it ends with the block."""
        self.beat()
        try:
            yield
        finally:
            self._file.unlink(missing_ok=True)

    def beat(self) -> None:
        """There is progress."""
        self._file.touch()


def silent_seconds(folders: Iterable[Path]) -> float | None:
    """Seconds since the last progress of the worker in one of these folders; None where nothing is computed."""
    found = []
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError):  # Cog may write logs beside the folders
            found.append(max(0.0, time.time() - (folder / FILE).stat().st_mtime))
    return max(found, default=None)


def idle_seconds(folders: Iterable[Path]) -> float | None:
    """Seconds since work last began or ended in one of these folders; None where there is no folder."""
    found = []
    for folder in folders:
        with suppress(FileNotFoundError):  # the folder's time is that of the last change of its entries
            found.append(max(0.0, time.time() - folder.stat().st_mtime))
    return min(found, default=None)
