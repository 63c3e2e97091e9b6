"""``lock.json``: which bytes are installed under a folder of weights.

It is written when a file is downloaded, converted or trusted. Commit it, and every other machine gets the same bytes.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.core.data_files import DataError, read_json
from backend.core.errors import WeightsError
from backend.core.files import write_atomic, writing_to

LOCK_NAME = "lock.json"
PARTIAL = ".partial"
"""Folder under the weights for unfinished downloads."""


@dataclass(frozen=True)
class LockedFile:
    """An installed file. ``revision`` is the commit of ``repository`` that it came from, empty for a user's own file.

    ``made_from`` is the SHA-256 of the pickle that a converted file was made from.
    """

    bytes: int
    sha256: str
    repository: str = ""
    revision: str = ""
    made_from: str = ""


def read_lock(folder: Path) -> dict[str, LockedFile]:
    """The lock of a folder of weights, by local name; empty when there is none.

    Raises :class:`WeightsError` when it is damaged.
    """
    path = folder / LOCK_NAME
    try:
        return {name: _locked(entry) for name, entry in read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (DataError, TypeError):
        raise WeightsError(
            f"{path.name} of the weights is damaged; restore it, or delete it and run scripts/fetch-weights again"
        ) from None


def _locked(entry: Any) -> LockedFile:
    """Raises TypeError for what is no entry of a lock."""
    locked = LockedFile(**entry)
    texts = (locked.sha256, locked.repository, locked.revision, locked.made_from)
    if type(locked.bytes) is not int or not all(isinstance(text, str) for text in texts):
        raise TypeError("no entry of a lock")
    return locked


def write_lock(folder: Path, lock: Mapping[str, LockedFile]) -> None:
    """Replaces the lock as a whole."""
    entries = {name: {key: value for key, value in asdict(lock[name]).items() if value != ""} for name in sorted(lock)}
    write_atomic(folder / LOCK_NAME, json.dumps(entries, indent=2) + "\n")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lets one process at a time write into a folder of weights; a second one waits. A killed one holds nothing.

    Raises :class:`backend.core.errors.StorageError` when the folder cannot be written.
    """
    with writing_to("the folder of the weights", "make it writable, or set another in weights_dir"):
        (folder / PARTIAL).mkdir(exist_ok=True)
        file = (folder / PARTIAL / "running").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
