"""The files that come with a request: where they lie, which are accepted, and when they are deleted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.core.errors import InputError
from backend.core.files import full_disk_in_one_line


@dataclass(frozen=True)
class Uploads:
    """A folder for the files of requests, each of which has its own."""

    folder: Path

    def receive_from_cog(self) -> None:
        """Makes this folder the temporary folder of the process.

        Cog's server writes there what a client sends, can be told no other place, and leaves some of the files.
        """
        tempfile.tempdir = str(self.folder)

    def only_received(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs as they are, when every file among them lies in this folder.

        Cog also lets a client name a file of the machine. Raises :class:`InputError`, which names the field and not the
        file.
        """
        for field, value in inputs.items():
            if isinstance(value, Path) and not (value.is_file() and value.resolve().parent == self.folder.resolve()):
                raise InputError(field, "must be sent as a data: URL, or be the http(s) address of a picture")
        return inputs

    def copy_in(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with every file, which the caller may name anywhere, replaced by a copy in this folder.

        Raises :class:`InputError` for a file that cannot be read.
        """
        return {
            field: self._copy(field, value) if isinstance(value, Path) else value for field, value in inputs.items()
        }

    def _copy(self, field: str, file: Path) -> Path:
        copy = self.folder / f"{field}{file.suffix}"
        try:
            with full_disk_in_one_line():
                shutil.copyfile(file, copy)
        except OSError as error:
            raise InputError(field, f"cannot read '{file}': {error.strerror}") from None
        return copy

    def delete(self, inputs: Mapping[str, Any]) -> None:
        """Deletes the files of this folder that are among these inputs."""
        for value in inputs.values():
            if isinstance(value, Path) and value.parent == self.folder:
                value.unlink(missing_ok=True)
