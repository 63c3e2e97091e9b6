"""Files that are never seen half-written, and names that are safe for files."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from backend.core.errors import StorageError
from backend.core.locks import open_locked

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder."""
PART_PATTERN = ".*.flux.part"
"""Temporary names, as a glob. Only a killed process leaves one behind."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The errors of a full disk, and of a user's share that is used up."""
MAX_NAME_BYTES = 100
"""Longer names, with what is added to them, would not fit every file system."""
RESERVED_BYTES = 5 * 2**30
"""Of a disk, which caches leave free."""


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def has_room(folder: Path, size: int, reserved: int = RESERVED_BYTES) -> bool:
    """Whether a file of ``size`` bytes leaves ``reserved`` bytes free on the disk of ``folder``. Raises OSError."""
    return shutil.disk_usage(folder).free - size >= reserved


@contextmanager
def atomic_files(targets: Sequence[Path], replace: bool = True) -> Iterator[list[Path]]:
    """Temporary files beside ``targets``, in the same order, for the block to write.

    When the block ends, each is flushed to the disk and gets its name, so that under its name a file is whole, also
    after a power cut. When the block raises, no target has changed and the temporary files are deleted. Those of killed
    processes are deleted by the next one that writes into the folder.

    Raises OSError; without ``replace`` FileExistsError when one of the targets is there, and then makes none of them.
    """
    token = secrets.token_hex(4)
    parts = [target.with_name(f".{target.name}.{token}.flux.part") for target in targets]
    with ExitStack() as held:
        for folder in {target.parent for target in targets}:
            held.enter_context(_writing_in(folder))
        try:
            yield parts
            for part in parts:
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
            if replace:
                for part, target in zip(parts, targets, strict=True):
                    part.replace(target)
            else:
                _link_all(parts, targets)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)


@contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    """Deletes the temporary files of killed processes, and keeps others from deleting ours until the block ends: who
    writes has a shared lock on the folder, who deletes an exclusive one."""
    with ExitStack() as held:
        with suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):  # not while somebody writes there
            for left in folder.glob(PART_PATTERN):
                left.unlink(missing_ok=True)
        with suppress(OSError):  # where folders have no locks, nobody deletes anything either
            held.enter_context(_locked(folder, fcntl.LOCK_SH))
        yield


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    descriptor = open_locked(folder, operation)
    try:
        yield
    finally:
        os.close(descriptor)


def _link_all(parts: Sequence[Path], targets: Sequence[Path]) -> None:
    """Gives every file its name, if nobody else has it: a link is refused where a rename would replace."""
    named: list[Path] = []
    try:
        for part, target in zip(parts, targets, strict=True):
            try:
                target.hardlink_to(part)
            except FileExistsError:
                raise
            except OSError:  # a disk without links: the name is taken first
                target.touch(exist_ok=False)
                part.replace(target)
            named.append(target)
    except OSError:
        for target in named:
            target.unlink()
        raise


def write_atomic(target: Path, content: bytes | str) -> None:
    """Writes one file by :func:`atomic_files`; text in UTF-8."""
    with atomic_files([target]) as [part]:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing_to(place: str, remedy: str) -> Iterator[None]:
    """Makes one line of an OSError: a :class:`StorageError` that says where nothing can be written, why, and what to
    do."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write to {place}: {error.strerror or error}; {remedy}") from error


@contextmanager
def full_disk_in_one_line() -> Iterator[None]:
    """Makes one line of the error that says that the disk of the temporary files is full: a :class:`StorageError`.

    It may have been wrapped on its way, as torch does with what goes wrong while it compiles.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause and not (isinstance(cause, OSError) and cause.errno in FULL):
            cause = cause.__cause__ or cause.__context__
        if not cause:
            raise
        raise StorageError(
            "the disk of the temporary files, or of compile_cache, is full; make room, or set TMPDIR to another"
        ) from error


def is_safe_name(name: str) -> bool:
    """Whether a name given by a user can name a file: letters, digits, ``.``, ``-`` and ``_``, not hidden, no path."""
    return bool(re.fullmatch(r"\w[\w.-]*", name)) and len(name.encode()) <= MAX_NAME_BYTES
