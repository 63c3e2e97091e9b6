"""The files that come with a request: where they lie, which are accepted, and when they are deleted."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.core.errors import InputError
from backend.core.files import full_disk_in_one_line

SWEEP_SECONDS = 3.0
"""A file that no request owns at two looks so far apart, and that nobody writes, is deleted."""
STALLED_SECONDS = 10.0
"""Without a byte, after which Cog's server gives a download up."""
MAX_BYTES = 128 * 2**20
"""Of one file."""
CHUNK = 2**20
"""Bytes that are copied at once."""
TOO_LARGE = f"is a file of more than {MAX_BYTES // 2**20} MiB; save it smaller"


def files_in(value: object) -> list[Path]:
    """The files that the value of an input is or lists."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, Path)]


@dataclass(frozen=True)
class Uploads:
    """A folder for the files of requests, each of which owns its own."""

    folder: Path
    _owned: set[Path] = field(default_factory=set)

    def receive_from_cog(self) -> None:
        """Makes this folder the temporary folder of the process, and deletes what no request owns from now on.

        Cog's server writes there what a client sends, and can be told no other place. When a request is canceled while
        an address is fetched, it leaves the file.
        """
        tempfile.tempdir = str(self.folder)
        threading.Thread(target=self._sweep, name="uploads", daemon=True).start()

    @contextmanager
    def owned(self, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The inputs as they are, when every file among them lies in this folder; these are deleted in the end.

        Cog also lets a client name a file of the machine. Raises :class:`InputError`, which names the field and not the
        file.
        """
        files = [(field, file) for field, value in inputs.items() for file in files_in(value)]
        own = {file for _, file in files if self._holds(file)}
        self._owned.update(own)
        try:
            for name, file in files:
                if file not in own:
                    raise InputError(name, "must be sent as a data: URL, or be the http(s) address of a picture")
            yield inputs
        finally:
            for file in own:
                file.unlink(missing_ok=True)
            self._owned.difference_update(own)

    def _holds(self, file: Path) -> bool:
        return file.is_file() and file.resolve().parent == self.folder.resolve()

    def copy_in(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with every file, which the caller may name anywhere and which may be a pipe, replaced by a copy in
        this folder.

        Raises :class:`InputError` for a file that cannot be read, or is larger than :data:`MAX_BYTES`.
        """
        return {field: self._copied(field, value) for field, value in inputs.items()}

    def _copied(self, field: str, value: Any) -> Any:
        if isinstance(value, Path):
            return self._copy(field, value, self.folder / f"{field}{value.suffix}")
        if not files_in(value):
            return value
        return [
            self._copy(field, file, self.folder / f"{field}-{number}{file.suffix}")
            for number, file in enumerate(value, 1)
        ]

    def _copy(self, field: str, file: Path, copy: Path) -> Path:
        try:
            with full_disk_in_one_line(), file.open("rb") as source, copy.open("wb") as target:
                for chunk in iter(lambda: source.read(CHUNK), b""):
                    if target.tell() + len(chunk) > MAX_BYTES:  # a device may have no end
                        raise InputError(field, TOO_LARGE)
                    target.write(chunk)
        except OSError as error:
            raise InputError(field, f"cannot read '{file}': {error.strerror}") from None
        return copy

    def _sweep(self) -> None:
        before: set[Path] = set()
        with suppress(FileNotFoundError):  # the folder itself is deleted when the process ends
            while True:
                before = self.delete_abandoned(before)
                time.sleep(SWEEP_SECONDS)

    def delete_abandoned(self, before: set[Path]) -> set[Path]:
        """Deletes the files that no request owns now, nor did at an earlier look, whose result is ``before``.

        Returns those that no request owns; none while a file is being written, because a request owns its files only
        when all of them have arrived.
        """
        files = set(self.folder.iterdir()) - self._owned
        if any(_age(file) > STALLED_SECONDS for file in files):
            gc.collect()  # a download that failed keeps its file open until its exception is collected
        if not files or any(file in files for file in _open_files()):
            return set()
        for file in files & before:
            file.unlink(missing_ok=True)
        return files - before


def _age(file: Path) -> float:
    """Seconds since something was written to it; 0 for a file that is gone."""
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _open_files() -> Iterator[Path]:
    """The files that this process has open (Linux)."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield descriptor.readlink()
