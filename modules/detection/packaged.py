"""Detectors whose models lie in a package that may be installed. They are small, compute on the CPU and are opened when
they are first needed, so they are not in the model cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from modules.detection import mediapipe, nudenet
from modules.detection.classes import ClassSet
from modules.detection.detections import Detections

if TYPE_CHECKING:
    from PIL import Image


class Finder(Protocol):
    """The detectors of one package."""

    def detect(self, images: Sequence[Image.Image], confidence: float, name: str) -> list[Detections]:
        """What the detector ``name`` finds in each RGB image, most confident first."""


def unavailable_reason(name: str) -> str:
    """Why the detector of this name cannot run here; "" when it can, and for the name of another."""
    return next((package.unavailable_reason() for package in (mediapipe, nudenet) if name in package.NAMES), "")


def class_sets(outlines: bool) -> dict[str, ClassSet]:
    """The classes of those that can run here, by their names. ``outlines`` is whether SAM 2 is installed."""
    names = [name for package in (mediapipe, nudenet) if not package.unavailable_reason() for name in package.NAMES]
    return dict.fromkeys(names, ClassSet(("face",), outlines=outlines))


def finders() -> Mapping[str, Finder]:
    """What detects, by the name of the detector."""
    return {
        **dict.fromkeys(mediapipe.NAMES, mediapipe.MediaPipeFaces()),
        **dict.fromkeys(nudenet.NAMES, nudenet.NudeNetFaces()),
    }
