"""Where the weight files are. Nothing is ever downloaded here: what is missing is an error that names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backend.errors import WeightsError
from backend.settings import ROOT, Settings

EMBEDDED = "embedded"
FLUX_FOLDERS = ("FLUX.1-dev", "FLUX.1-schnell")
"""Families under ``weights/`` that "auto" prefers to the embedded one, best first."""

PIPELINE_FILE = "model_index.json"


def is_pipeline(folder: Path) -> bool:
    return (folder / PIPELINE_FILE).is_file()


def resolve_model(settings: Settings) -> Path:
    """The diffusers folder or single-file checkpoint that the setting ``model`` asks for.

    "auto" is the best family present under ``weights/``, "embedded" the small one of our own, anything else a name under
    ``weights/`` or a path. Raises :class:`WeightsError` when it is not there.
    """
    weights = settings.weights_path
    embedded = weights / EMBEDDED / "flux"
    if settings.model == "auto":
        return next((weights / name for name in FLUX_FOLDERS if is_pipeline(weights / name)), embedded)
    if settings.model == EMBEDDED:
        return embedded
    for path in (weights / settings.model, ROOT / settings.model, Path(settings.model).expanduser()):
        if is_pipeline(path) or (path.is_file() and path.suffix.lower() == ".safetensors"):
            return path
    raise WeightsError(
        f"model '{settings.model}' in config_optimized.json is neither a folder with {PIPELINE_FILE} nor a .safetensors file; "
        "give 'auto', 'embedded', a name under weights/ or a path"
    )


def resolve_file(key: str, wanted: str, preferred: Sequence[str], settings: Settings) -> Path:
    """The file for a setting such as ``upscaler``: "auto" takes the first of ``preferred`` that lies under ``weights/``."""
    names = preferred if wanted == "auto" else (wanted,)
    for name in names:
        for path in (settings.weights_path / name, settings.weights_path / EMBEDDED / name, Path(name).expanduser()):
            if path.is_file():
                return path
    raise WeightsError(f"{key}: {' or '.join(names)} is not under weights/; put the file there or change '{key}' in config_optimized.json")
