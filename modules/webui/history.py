"""The runs of a browser on the disk: a folder for every session, in it one for every run, with what it was asked for,
what came of it, and its pictures."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from backend.core.errors import InputError
from backend.core.files import write_atomic

RECORD = "run.json"
WAITING, RUNNING, SUCCEEDED, FAILED, CANCELED = "waiting", "running", "succeeded", "failed", "canceled"
SHOWN = 60
"""Runs in the list."""
THUMBNAIL = 256
_SESSION, _RUN = re.compile(r"[0-9a-f]{32}"), re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Entry:
    """One run: its folder and its record."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def pictures(self) -> list[Path]:
        return self._files("pictures")

    @property
    def before(self) -> list[Path]:
        """The pictures before the detail pass, at the size of the finished ones."""
        return self._files("before")

    @property
    def thumbnail(self) -> Path:
        return self.folder / "thumbnail.webp"

    def _files(self, name: str) -> list[Path]:
        return [self.folder / file for file in self.record.get(name, ())]


@dataclass(frozen=True)
class History:
    """All sessions in ``folder``. The name of a session is a secret of its browser."""

    folder: Path

    @staticmethod
    def new_session() -> str:
        return secrets.token_hex(16)

    @staticmethod
    def is_session(name: object) -> bool:
        """Whether it may be one: it came from a browser, and becomes the name of a folder."""
        return isinstance(name, str) and bool(_SESSION.fullmatch(name))

    def new_run(self, session: str) -> Path:
        """A new folder. Its names sort by time."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = self.folder / session / f"{stamp}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def entries(self, session: str) -> list[Entry]:
        """The finished runs of a session, newest first."""
        names = sorted((path.name for path in (self.folder / session).glob("*-*-*")), reverse=True)
        found = (self.entry(session, name) for name in names)
        return list(islice((one for one in found if one and one.thumbnail.is_file()), SHOWN))  # reads no more of them

    def entry(self, session: str, name: object) -> Entry | None:
        """One run; None where there is none."""
        if not self.is_session(session) or not isinstance(name, str) or not _RUN.fullmatch(name):
            return None
        folder = self.folder / session / name
        try:
            return Entry(folder, json.loads((folder / RECORD).read_text()))
        except (OSError, ValueError):  # deleted by its owner, or being written by a version to come
            return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Paths are written as their names."""
    write_atomic(folder / RECORD, json.dumps(record, default=_plain).encode())


def _plain(value: object) -> object:
    return value.name if isinstance(value, Path) else str(value)


def write_thumbnail(picture: Path, folder: Path) -> None:
    with Image.open(picture) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGB").save(folder / "thumbnail.webp", quality=80)


def keep_pictures(inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The inputs with copies of their pictures in the folder of the run, which stay when the browser has gone."""

    def kept(name: str, file: Path, number: int = 0) -> Path:
        copy = folder / f"input-{name}{f'-{number}' if number else ''}{file.suffix.lower()[:6]}"
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise InputError(name, f"cannot be read: {error.strerror}; give the picture again") from None
        return copy

    result = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Path):
            result[name] = kept(name, value)
        elif isinstance(value, list):
            result[name] = [kept(name, one, number) for number, one in enumerate(value, start=1)]
    return result
