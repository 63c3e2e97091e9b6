"""The results of a table in a folder: the pictures, and a line of ``manifest.jsonl`` for every row.

A picture gets its name when it is complete, and its row is logged after that. So ``resume`` can continue after a kill
at any moment. It trusts nothing that it finds: a line that says something else, or a picture with other bytes, counts
as missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from backend.core.errors import InputError
from backend.core.files import write_atomic
from backend.core.locks import NO_LOCKS, open_locked
from backend.nodes.contact_sheet import CONTACT_SHEET, contact_sheet
from backend.nodes.images import Outcome
from backend.nodes.table import Row

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
MAX_LINE_BYTES = 1 << 20
"""Ours are a tenth of that at most."""


class Manifest:
    """The folder of a table's results. Call ``begin`` before the first ``deliver``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / MANIFEST
        self._release: Callable[[], object] | None = None

    def begin(self, rows: Sequence[Row], resume: bool) -> list[Row]:
        """The rows that are still to be made: all, or with ``resume`` those that are not done.

        A row is done when its last line says so, its inputs are the same, and its files are those that were written.
        Other lines are dropped, so that in the end every row has one line; those that are damaged or of no row are
        told. Raises :class:`InputError` when another process is writing there, or when the folder already holds a
        manifest and ``resume`` is not set, and OSError.
        """
        if self.path.exists() and not resume:
            raise InputError(
                "-o", f"'{self.folder}' already holds a {MANIFEST}; continue with --resume, or choose another folder"
            )
        if not self._release:
            self._hold()
        last = {entry["id"]: entry for entry in self.entries()}
        kept = {row.id: last[row.id] for row in rows if row.id in last and self._is_complete(row, last[row.id])}
        if others := len(last.keys() - {row.id for row in rows}):
            logger.warning("%s: %d lines are of no row of this table and are dropped", MANIFEST, others)
        write_atomic(self.path, "".join(map(_line, kept.values())))
        self._hold()
        return [row for row in rows if row.id not in kept]

    def entries(self) -> list[dict[str, Any]]:
        """The lines so far. Damaged ones are left out, with a warning, except for a last one that a kill cut off."""
        entries: list[dict[str, Any]] = []
        damaged: list[int] = []
        for number, line in enumerate(_lines(self.path), 1):
            if entry := _parsed(line):
                entries.append(entry)
            elif line.endswith(b"\n"):
                damaged.append(number)
        if damaged:
            where = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
            logger.warning(
                "%s: %d damaged lines are skipped, and rows without another are made again: %s",
                MANIFEST,
                len(damaged),
                where,
            )
        return entries

    def _hold(self) -> None:
        """Keeps other processes from writing to the manifest as it now is, as long as this object lives."""
        release = self._release
        try:
            lock = open_locked(self.path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDWR | os.O_CREAT)
            self._release = weakref.finalize(self, os.close, lock)
        except BlockingIOError:
            raise InputError("-o", f"another scripts/batch is writing to '{self.folder}'; wait until it ends") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if release:
            release()

    def deliver(self, outcome: Outcome) -> None:
        """Writes the pictures of a row, then its line in the manifest. Raises OSError, for instance on a full disk."""
        for name, picture in outcome.files.items():
            write_atomic(self.folder / name, picture)
        with self.path.open("a") as manifest:
            manifest.write(_line(_entry(outcome)))
            manifest.flush()
            os.fsync(manifest.fileno())

    def finish(self, rows: Sequence[Row]) -> None:
        """Puts the lines in the order of the table, and writes the contact sheet. Raises OSError."""
        last = {entry["id"]: entry for entry in self.entries()}
        entries = [last[row.id] for row in rows if row.id in last]
        write_atomic(self.path, "".join(map(_line, entries)))
        self._hold()
        write_atomic(self.folder / CONTACT_SHEET, contact_sheet(entries))

    def _is_complete(self, row: Row, entry: dict[str, Any]) -> bool:
        if entry["status"] != "done" or entry["inputs"] != row.digest:
            return False
        digests, own = entry.get("sha256", {}), re.compile(re.escape(row.stem) + r"-\d+\.\w+")
        return all(
            own.fullmatch(name) and _is_whole(self.folder / name, size, digests.get(name))
            for name, size in entry["files"].items()
        )


def _is_whole(file: Path, size: int, digest: str | None) -> bool:
    """Whether a picture is the one that was written. Without a digest, as earlier versions logged it, it must be one
    that can be read."""
    try:
        content = file.read_bytes() if file.stat().st_size == size else b""
        if digest is None:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        return bool(content) and digest in (None, hashlib.sha256(content).hexdigest())
    except (OSError, SyntaxError, ValueError):  # gone, a folder, or what Pillow raises for what is no picture
        return False


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, none of which takes more than ``MAX_LINE_BYTES`` of memory: a longer one counts as empty."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
                yield line
                continue
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The entry in a line, with at least what is read here; None for anything else."""
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    if entry.get("status") == "failed":
        return entry
    files, digests = entry.get("files"), entry.get("sha256", {})
    sound = (
        entry.get("status") == "done"
        and isinstance(entry.get("inputs"), str)
        and (isinstance(files, dict) and files and all(isinstance(size, int) for size in files.values()))
        and (isinstance(digests, dict) and all(isinstance(digest, str) for digest in digests.values()))
    )
    return entry if sound else None


def _entry(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    entry = {
        "id": row.id,
        "status": "failed" if outcome.error else "done",
        "prompt": row.inputs.get("prompt"),
        "seed": row.inputs.get("seed"),
    }
    if outcome.error:
        return {**entry, "error": outcome.error}
    return {
        **entry,
        **outcome.facts,
        "files": {name: len(picture) for name, picture in outcome.files.items()},
        "sha256": {name: hashlib.sha256(picture).hexdigest() for name, picture in outcome.files.items()},
        "seconds": round(outcome.seconds, 3),
        "stages": outcome.stages,
        "peak_bytes": outcome.peak_bytes,
        "inputs": row.digest,
    }


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
