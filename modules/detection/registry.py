"""Which detectors are there: the names that ``ad_model`` takes, and their files. Light: nothing is read but headers."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from backend.core.settings import Settings
from backend.weights.resolver import EMBEDDED, resolve_file, safe_form

FACE_DETECTORS = ("face_yolov8n.pt", "face_detector.safetensors")
"""What "auto" takes, best first."""
PUBLISHED = (
    "face_yolov8n.pt",
    "face_yolov8s.pt",
    "hand_yolov8n.pt",
    "person_yolov8n-seg.pt",
    "person_yolov8s-seg.pt",
    "yolov8x-worldv2.pt",
)
"""Those that ADetailer offers; each is used where its file lies under ``weights/``."""
OWN = ("face_detector.safetensors", "hand_detector.safetensors", "person_detector.safetensors")
FOLDER = "adetailer"
"""Folder under ``weights/`` for any other detector."""


def detector_name(path: Path) -> str:
    """What ``ad_model`` calls a detector: its file's name, without the ending where that is ours."""
    return path.stem if path.suffix == ".safetensors" else path.name


def find_detectors(settings: Settings) -> dict[str, Path]:
    """The files of all detectors that are there, by name; the first is the one for faces that is used when nobody names
    another.

    Raises :class:`~backend.core.errors.WeightsError` where the setting ``face_detector`` names one that is missing, or
    a file is not what was installed.
    """
    weights = settings.weights_path
    first = resolve_file("face_detector", settings.face_detector, FACE_DETECTORS, settings)
    found = {detector_name(first): first}
    present = [path for name in PUBLISHED if (path := weights / name).is_file()]
    present += [path for name in OWN if (path := weights / EMBEDDED / name).is_file()]
    present += sorted(path for path in (weights / FOLDER).glob("*") if path.suffix in (".pt", ".onnx", ".safetensors"))
    for path in present:
        found.setdefault(detector_name(path), resolve_file("ad_model", str(path), (), settings))
    return {name: safe_form(path, settings) for name, path in found.items()}


def detector_parameters(path: Path) -> int:
    """How many weights of the file will be on the device. Those of a checkpoint are taken for half precision, as
    ultralytics saves them."""
    if path.suffix == ".onnx":  # computes on the CPU
        return 0
    if path.suffix != ".safetensors":
        return path.stat().st_size // 2
    with safe_open(path, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
