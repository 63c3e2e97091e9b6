"""Folders for temporary files, which are deleted even when their process was killed: by the next one that makes such a
folder.

Every process locks the folders that it uses (``flock``), and its locks end with it. So a folder that nobody locks was
left behind. Process ids would not do: they are used again, and differ between containers that share a ``/tmp``.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from backend.core.errors import StorageError
from backend.core.locks import NO_LOCKS, open_locked

PREFIX = "flux-adetailer-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in the temporary directory, deleted with everything in it when the block ends.

    First deletes the folders that killed processes left there. Raises :class:`StorageError` when no folder can be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = hold(folder)
    except OSError as error:
        raise StorageError(
            f"cannot make a temporary folder ({error.strerror or error}); make room, or set TMPDIR to another folder"
        ) from None
    owner = os.getpid()
    try:
        _sweep(folder.parent)
        yield folder
    finally:
        # a forked child ends the block too: multiprocessing of Python 3.13 drops what its parent registered with atexit
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def scratch_for_process() -> Path:
    """A :func:`scratch_folder` for the rest of the process's life."""
    until_the_end = ExitStack()
    atexit.register(until_the_end.close)
    return until_the_end.enter_context(scratch_folder())


def hold(folder: Path) -> int:
    """Makes ``folder`` where it is missing, and keeps it from being swept.

    Returns a file descriptor: closing it, or the end of the process, gives the folder up. Several processes may hold
    the same folder. Raises OSError.
    """
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        try:
            return open_locked(folder, fcntl.LOCK_SH, os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # swept before it was locked
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return os.open(folder, os.O_DIRECTORY)  # nothing is swept there either


def held_folders(directory: Path) -> Iterator[Path]:
    """The scratch folders in a directory whose processes live."""
    for folder in directory.glob(f"{PREFIX}*"):
        try:
            os.close(open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_DIRECTORY | os.O_NOFOLLOW))
        except BlockingIOError:
            yield folder
        except OSError:  # gone, of another user, or on a file system without locks
            continue


def _sweep(directory: Path) -> None:
    for folder in directory.glob(f"{PREFIX}*"):
        with suppress(OSError):  # held by a living process, of another user, or gone
            lock = open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_DIRECTORY | os.O_NOFOLLOW)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
