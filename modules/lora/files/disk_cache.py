"""Downloaded LoRA files on disk, so that each is fetched once.

A file is named after the hash of its content. Beside it lies an entry for every reference that led to it, which says
what the file is called. The least recently used files are deleted when all together are larger than the limit.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.core.cancellation import Check
from backend.core.data_files import DataError, read_json
from backend.core.errors import StorageError
from backend.core.files import RESERVED_BYTES, atomic_files, can_be_written, has_room, write_atomic
from backend.core.locks import NO_LOCKS, open_locked
from backend.core.units import format_bytes

SUFFIX = ".safetensors"
LOOK_SECONDS = 0.1
"""Between two looks at whether another process has finished."""


@dataclass(frozen=True)
class Kept:
    """What a reference led to.

    Attributes:
        sha256: Of the content, which is the name of the file.
        name: What the file is called where it comes from, without its suffix.
        reference: Where it comes from exactly, such as with the name of the file that was chosen.
    """

    sha256: str
    name: str
    reference: str


@dataclass(frozen=True)
class DiskCache:
    """Files in the first of ``folders`` that can be written, of ``max_bytes`` together, as long as ``reserved``
    bytes of the disk stay free."""

    folders: Sequence[Path]
    max_bytes: int
    reserved: int = RESERVED_BYTES

    def find(self, key: str) -> Kept | None:
        """What is known of the reference with this key; it counts as used now. None where the file is gone."""
        for folder in self.folders:
            kept = _read(folder / f"{key}.json")
            if kept and (folder / f"{kept.sha256}{SUFFIX}").is_file():
                with suppress(OSError):  # a folder that cannot be written is never cleared either
                    os.utime(folder / f"{key}.json")
                return kept
        return None

    def path(self, sha256: str) -> Path:
        """The file with this content. Raises FileNotFoundError."""
        for folder in self.folders:
            if (file := folder / f"{sha256}{SUFFIX}").is_file():
                return file
        raise FileNotFoundError(sha256)

    def forget(self, sha256: str) -> None:
        """Deletes a file that is not what it was."""
        for folder in self.folders:
            with suppress(OSError):
                (folder / f"{sha256}{SUFFIX}").unlink(missing_ok=True)

    @contextmanager
    def making(self, key: str, check: Check) -> Iterator[Path]:
        """The folder to download into. One process at a time has the key, others wait; ``check`` ends the waiting.

        Raises :class:`StorageError` where no folder can be written.
        """
        folder = next(filter(can_be_written, self.folders), None)
        if folder is None:
            raise StorageError("no folder for downloaded LoRA files can be written; set another in lora_cache")
        with _locked(folder / f"{key}.lock", check):
            yield folder

    def add(self, folder: Path, key: str, write: Callable[[Path], Kept]) -> Kept:
        """Installs the file that ``write`` makes; when that raises nothing is left. Raises OSError."""
        new = folder / f"{key}.new"
        with atomic_files([new]) as [part]:
            kept = write(part)
        new.replace(folder / f"{kept.sha256}{SUFFIX}")
        self.remember(folder, key, kept)
        return kept

    def remember(self, folder: Path, key: str, kept: Kept) -> None:
        """Notes what a reference led to."""
        write_atomic(folder / f"{key}.json", json.dumps(asdict(kept)))

    def make_room(self, folder: Path, size: int, keep: frozenset[str]) -> None:
        """Deletes the least recently used files until ``size`` more bytes fit, except those whose hash is in ``keep``.

        Raises :class:`StorageError` where they do not fit.
        """
        used = _last_use(folder)
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: used.get(file.stem, 0.0))
        held = {file: file.stat().st_size for file in files}
        for file in [file for file in held if file.stem not in keep]:
            if sum(held.values()) + size <= self.max_bytes and has_room(folder, size, self.reserved):
                break
            del held[file]
            _delete(file)
        if sum(held.values()) + size > self.max_bytes:
            raise StorageError(
                f"the cache of LoRA files takes {format_bytes(self.max_bytes)}, and {format_bytes(size)} more are "
                "needed; raise lora_cache_gb"
            )
        if not has_room(folder, size, self.reserved):
            raise StorageError(
                f"the disk of the cache of LoRA files has no room for {format_bytes(size)}; make room, or set another "
                "folder in lora_cache"
            )


def _read(file: Path) -> Kept | None:
    try:
        return Kept(**{name: str(value) for name, value in read_json(file).items()})
    except (FileNotFoundError, DataError, TypeError):  # none, or damaged
        return None


def _last_use(folder: Path) -> dict[str, float]:
    """By the hash of a file, when a reference to it was used last. Deletes the entries of files that are gone."""
    used: dict[str, float] = {}
    for entry in folder.glob("*.json"):
        kept = _read(entry)
        if kept is None or not (folder / f"{kept.sha256}{SUFFIX}").is_file():
            entry.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):
            used[kept.sha256] = max(used.get(kept.sha256, 0.0), entry.stat().st_mtime)
    return used


def _delete(file: Path) -> None:
    """Deletes a file and the entries that lead to it."""
    file.unlink(missing_ok=True)
    for entry in file.parent.glob("*.json"):
        kept = _read(entry)
        if kept and kept.sha256 == file.stem:
            entry.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, check: Check) -> Iterator[None]:
    """Waits for the lock, which it deletes in the end."""
    with ExitStack() as held:
        while True:
            check()
            try:
                descriptor = open_locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CREAT)
            except BlockingIOError:
                time.sleep(LOOK_SECONDS)
                continue
            except FileNotFoundError:  # deleted between opening and looking
                continue
            except OSError as problem:
                if problem.errno not in NO_LOCKS:
                    raise
                yield
                return
            held.callback(os.close, descriptor)
            held.callback(file.unlink, missing_ok=True)  # before it is given up: a waiting process makes a new one
            break
        yield
