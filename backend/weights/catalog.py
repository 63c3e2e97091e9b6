"""``weights/manifest.json``: the models that the package can use. ``lock.json`` beside them: what exactly was
installed.

The manifest is written by hand and says where a model comes from. The lock is written when a file is downloaded,
converted or trusted, and says which bytes those were; commit it, and every other machine gets the same ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from backend.core.errors import WeightsError, nearest
from backend.core.settings import ROOT

MANIFEST_FILE = ROOT / "weights" / "manifest.json"
LOCK_NAME = "lock.json"
PARTIAL = ".partial"
"""Folder for what is on its way to its place."""


@dataclass(frozen=True)
class WeightFile:
    """One file of a model: where it lies in its repository, and under the folder of the weights."""

    model: str
    repository: str
    revision: str
    path: str
    local: str


@dataclass(frozen=True)
class Part:
    """A piece of a model that somebody may want by itself. ``about_bytes`` is 0 for files too small to matter."""

    purpose: str
    about_bytes: int
    files: tuple[WeightFile, ...]


@dataclass(frozen=True)
class Detector:
    """What a detector must be, whatever its file's name says. No classes: those are given in words."""

    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    name: str
    purpose: str
    repository: str
    revision: str
    licence: str
    gated: bool
    preinstalled: bool
    parts: Mapping[str, Part]
    detector: Detector | None

    @property
    def files(self) -> tuple[WeightFile, ...]:
        return tuple(file for part in self.parts.values() for file in part.files)

    @property
    def about_bytes(self) -> int:
        return sum(part.about_bytes for part in self.parts.values())


def _model(name: str, entry: Mapping[str, Any], layouts: Mapping[str, Mapping[str, Any]]) -> Model:
    layout = layouts[entry["layout"]] if "layout" in entry else {}
    own = {"purpose": entry["purpose"], "about_bytes": entry.get("about_bytes", 0), "files": entry.get("files", [])}

    def part(described: Mapping[str, Any]) -> Part:
        files = tuple(
            # a pipeline keeps its folders; a model of one file lies at the top, where settings and users name it
            WeightFile(
                name,
                entry["repository"],
                entry["revision"],
                path,
                f"{name}/{path}" if layout else PurePosixPath(path).name,
            )
            for path in described["files"]
        )
        return Part(described["purpose"], described.get("about_bytes", 0), files)

    parts = {key: part(described) for key, described in layout.items()} | ({"files": part(own)} if own["files"] else {})
    detector = Detector(entry["detector"]["task"], tuple(entry["detector"]["classes"])) if "detector" in entry else None
    keys = ("purpose", "repository", "revision", "licence", "gated", "preinstalled")
    return Model(name, **{key: entry[key] for key in keys}, parts=parts, detector=detector)


@cache
def read_manifest(path: Path = MANIFEST_FILE) -> Mapping[str, Model]:
    """The models by name, in the file's order."""
    data = json.loads(path.read_text())
    return {name: _model(name, entry, data["layouts"]) for name, entry in data["models"].items()}


def find_model(name: str) -> Model | None:
    """The model of this name (``FLUX.1-dev``), of this repository (``stabilityai/stable-diffusion-xl-base-1.0``) or
    with a file of this name."""
    models = read_manifest()
    pipelines = (model for model in models.values() if model.repository == name and "pipeline" in model.parts)
    return (
        models.get(name)
        or next(pipelines, None)
        or next((model for model in models.values() if any(file.local == name for file in model.files)), None)
    )


def choose_files(only: tuple[str, ...]) -> list[WeightFile]:
    """The files that some names stand for: a model, ``MODEL/PART``, a file, or a pattern of these; none: the
    preinstalled models.

    Raises :class:`WeightsError` for a name that stands for nothing.
    """
    models = read_manifest()
    if not only:
        return [file for model in models.values() if model.preinstalled for file in model.files]
    chosen: dict[WeightFile, None] = {}
    for wanted in only:
        found = [
            file
            for model in models.values()
            for key, part in model.parts.items()
            for file in part.files
            if any(fnmatchcase(name, wanted) for name in (model.name, f"{model.name}/{key}", file.local))
        ]
        if not found:
            raise WeightsError(
                f"{wanted}: is no model of weights/manifest.json{nearest(wanted, models)}; it knows {', '.join(models)}"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


@dataclass(frozen=True)
class LockedFile:
    """The bytes of an installed file. ``revision`` is the commit of ``repository`` that they came from, empty for
    one's own files."""

    bytes: int
    sha256: str
    repository: str = ""
    revision: str = ""
    made_from: str = ""
    """SHA-256 of the pickle that a converted file was made from."""


def read_lock(folder: Path) -> dict[str, LockedFile]:
    """The lock of a folder of weights, by local name; empty when there is none. Raises :class:`WeightsError` when it
    is damaged."""
    path = folder / LOCK_NAME
    if not path.is_file():
        return {}
    try:
        return {str(name): LockedFile(**entry) for name, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError):
        raise WeightsError(
            f"{path.name} of the weights is damaged; restore it, or delete it and run scripts/fetch-weights again"
        ) from None


def write_lock(folder: Path, lock: Mapping[str, LockedFile]) -> None:
    """Replaces the lock as a whole."""
    entries = {name: {key: value for key, value in asdict(lock[name]).items() if value != ""} for name in sorted(lock)}
    write_whole(folder / LOCK_NAME, json.dumps(entries, indent=2).encode() + b"\n")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time writes into a folder of weights; a second one waits. A killed one holds nothing."""
    (folder / PARTIAL).mkdir(exist_ok=True)
    with (folder / PARTIAL / "running").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is never seen half-written, also after a power cut."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
