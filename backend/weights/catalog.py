"""``weights/manifest.json``: the models that the package can use, and where each comes from. Written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from backend.core.data_files import DataError, read_json
from backend.core.errors import WeightsError, nearest
from backend.core.settings import ROOT

MANIFEST_FILE = ROOT / "weights" / "manifest.json"


@dataclass(frozen=True)
class WeightFile:
    """One file of a model: its ``path`` in the repository, and its ``local`` path under the folder of the weights."""

    model: str
    repository: str
    revision: str
    path: str
    local: str


@dataclass(frozen=True)
class Part:
    """A part of a model that can be downloaded alone. ``about_bytes`` is 0 for small files."""

    purpose: str
    about_bytes: int
    files: tuple[WeightFile, ...]


@dataclass(frozen=True)
class Detector:
    """What a detector must be, whatever its file's name says. Without classes it is an open-vocabulary detector."""

    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """``auto``: whether the setting ``model`` "auto" may choose it."""

    name: str
    purpose: str
    repository: str
    revision: str
    licence: str
    gated: bool
    preinstalled: bool
    auto: bool
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
            # a pipeline keeps its folders; a single file is put at the top, where settings name it
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
    told = {key: entry[key] for key in keys}
    return Model(name, **told, auto=entry.get("auto", False), parts=parts, detector=detector)


@cache
def read_manifest(path: Path = MANIFEST_FILE) -> Mapping[str, Model]:
    """The models by name, in the file's order."""
    try:
        data: Any = read_json(path)
        return {name: _model(name, entry, data["layouts"]) for name, entry in data["models"].items()}
    except (FileNotFoundError, DataError, TypeError, LookupError, AttributeError) as error:
        told = error if isinstance(error, DataError) else "is missing or damaged"
        raise WeightsError(f"weights/{path.name} {told}; restore it from the repository") from error


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
    """The files that names select: a model, ``MODEL/PART``, a file, or a glob pattern of these. Without names: the
    preinstalled models.

    Raises :class:`WeightsError` for a name that selects nothing.
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
