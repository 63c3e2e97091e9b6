"""What became of a table, in its folder: the pictures, and a line of ``manifest.jsonl`` for every row.

A picture appears under its name when it is complete, and its row in the manifest after that. So a process that is
killed at any moment leaves a folder with which ``resume`` goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.core.errors import InputError
from backend.core.files import PART_PATTERN, write_atomic
from backend.nodes.images import Outcome
from backend.nodes.table import Row

MANIFEST = "manifest.jsonl"


class Manifest:
    """The folder of a table's pictures. ``begin`` it before anything is delivered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / MANIFEST

    def begin(self, rows: Sequence[Row], resume: bool) -> list[Row]:
        """The rows that are still to be made: all, or with ``resume`` those that are not done.

        A row is done when its last line says so, its inputs are the same, and its files are there in full. Lines of
        other rows are dropped, so that in the end every row has one. Raises :class:`InputError` when the folder holds a
        manifest already and nobody asked to resume.
        """
        if self.path.exists() and not resume:
            raise InputError(
                "-o", f"'{self.folder}' holds a {MANIFEST} already; go on with --resume, or choose another folder"
            )
        done = {entry["id"]: entry for entry in self.entries() if entry["status"] == "done"}
        kept = {row.id: done[row.id] for row in rows if row.id in done and self._is_complete(row, done[row.id])}
        for left in self.folder.glob(PART_PATTERN):  # by a process that was killed
            left.unlink()
        write_atomic(self.path, "".join(map(_line, kept.values())))
        return [row for row in rows if row.id not in kept]

    def entries(self) -> list[dict[str, Any]]:
        """The lines so far. The last one may have been cut off by a kill; it does not count then."""
        lines = self.path.read_text().split("\n") if self.path.exists() else [""]
        return [json.loads(line) for line in lines[:-1]]  # what follows the last line's end is empty, or no whole line

    def deliver(self, outcome: Outcome) -> None:
        """Puts the row's pictures into the folder, then its line into the manifest. Raises OSError when the disk is
        full, say."""
        for name, picture in outcome.files.items():
            write_atomic(self.folder / name, picture)
        with self.path.open("a") as manifest:
            manifest.write(_line(_entry(outcome)))
            manifest.flush()
            os.fsync(manifest.fileno())

    def _is_complete(self, row: Row, entry: dict[str, Any]) -> bool:
        files = {self.folder / name: size for name, size in entry["files"].items()}
        return bool(
            entry["inputs"] == row.digest
            and all(file.is_file() and file.stat().st_size == size for file, size in files.items())
        )


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
        "files": {name: len(picture) for name, picture in outcome.files.items()},
        "seconds": round(outcome.seconds, 3),
        "stages": outcome.stages,
        "peak_bytes": outcome.peak_bytes,
        "inputs": row.digest,
    }


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
