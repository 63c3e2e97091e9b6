"""Which detectors are installed: the names that ``ad_model`` takes, and their files. Only headers are read."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from safetensors import safe_open

from backend.core.settings import Settings
from backend.weights.catalog import read_manifest
from backend.weights.found_files import FoundFiles
from backend.weights.resolver import EMBEDDED, checked_file, resolve_file, safe_form
from modules.detection.classes import ClassSet
from modules.detection.description import read_description

FACE_DETECTORS = ("face_yolov8n.pt", "face_detector.safetensors")
"""What "auto" chooses from, best first."""
PUBLISHED = (
    "face_yolov8n.pt",
    "face_yolov8s.pt",
    "hand_yolov8n.pt",
    "person_yolov8n-seg.pt",
    "person_yolov8s-seg.pt",
    "yolov8x-worldv2.pt",
)
"""Those that ADetailer offers; each is used if its file is under ``weights/``."""
OWN = ("face_detector.safetensors", "hand_detector.safetensors", "person_detector.safetensors")
FOLDER = "adetailer"
"""Folder under ``weights/`` for other detectors."""


def detector_name(path: Path) -> str:
    """What ``ad_model`` calls a detector: the name of its file, without the suffix if that is ``.safetensors``."""
    return path.stem if path.suffix == ".safetensors" else path.name


def find_detectors(settings: Settings) -> FoundFiles:
    """The files of all installed detectors, by name; the first is the default, a detector of faces.

    Raises :class:`~backend.core.errors.WeightsError` if the setting ``face_detector`` names a file that is missing, or
    a file is not the one that was installed.
    """
    weights, found = settings.weights_path, FoundFiles("detector")
    if settings.face_detector != "auto":
        first = resolve_file("face_detector", settings.face_detector, (), settings)
        found[detector_name(first)] = first
    best, own = FACE_DETECTORS
    present = [path for name in (best, f"{EMBEDDED}/{own}", *PUBLISHED) if (path := weights / name).is_file()]
    present += [path for name in OWN if (path := weights / EMBEDDED / name).is_file()]
    present += sorted(path for path in (weights / FOLDER).glob("*") if path.suffix in (".pt", ".onnx", ".safetensors"))
    for path in present:
        found.add(detector_name(path), path, settings, partial(check_detector, settings=settings))
    if not found:
        resolve_file("face_detector", "auto", FACE_DETECTORS, settings)  # which says what is missing
    for name, path in found.items():
        found[name] = safe_form(path, settings)
    return found


def check_detector(path: Path, settings: Settings) -> None:
    """Raises :class:`~backend.core.errors.WeightsError` for a file of which even the header shows that it cannot be
    used."""
    checked_file(path, settings)
    if path.suffix == ".safetensors":
        read_description(path.with_suffix(".yaml"))


def stated_classes(path: Path) -> ClassSet:
    """The classes that the description beside a detector states, or that its name stands for. Where neither says any,
    the set takes every word: only the weights know."""
    if path.suffix == ".safetensors":
        return ClassSet(tuple(read_description(path.with_suffix(".yaml"))["names"]))
    known = next((one.detector for one in read_manifest().values() if one.detector and one.name == path.stem), None)
    classes = tuple(known.classes) if known else ()
    return ClassSet(classes, open_vocabulary=not classes)


def detector_parameters(path: Path) -> int:
    """How many parameters of the file will be on the device. A checkpoint is assumed to be in half precision, as
    ultralytics saves it."""
    if path.suffix == ".onnx":  # computes on the CPU
        return 0
    if path.suffix != ".safetensors":
        return path.stat().st_size // 2
    with safe_open(path, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
