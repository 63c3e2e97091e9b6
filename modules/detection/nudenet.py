"""A detector of faces in photographs: that of NudeNet, where its package and onnxruntime are installed.

The network is the safety checker's. Two of its classes are faces, of women and of men; here both are "face". It was
trained on photographs of 320 pixels, so a face should take a tenth of the picture's width or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.detection.detections import Detections

if TYPE_CHECKING:
    from PIL import Image

NAMES = ("nudenet_face",)
INSTALL = "pip install --no-deps -r requirements-safety.txt"
FACES = ("FACE_FEMALE", "FACE_MALE")
MOST_SHARED = 0.8
"""Of two boxes of which more than this share of one lies in the other the less confident one is dropped: a face may be
found as either class."""


def unavailable_reason() -> str:
    """Why the detector cannot run here, "" when it can. Imports neither package."""
    for package in ("nudenet", "onnxruntime"):
        if find_spec(package) is None:
            return f"NudeNet's detector of faces needs the package {package}: {INSTALL}"
    return ""


class NudeNetFaces:
    """Opens the network when it is first needed, and keeps it: 12 MB, which compute on the CPU."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=1)(open_network)

    def detect(self, images: Sequence[Image.Image], confidence: float, name: str) -> list[Detections]:
        """The faces in each RGB image, most confident first.

        Args:
            confidence: Only what is more confident than this is found, 0 to 1.
            name: One of ``NAMES``.
        """
        from torch import from_numpy

        from modules.detection.yolo import Detector, without_contained

        network = self._open()
        faces = [number for number, class_name in network.names.items() if class_name in FACES]
        found = Detector(network).detect(images, confidence, faces)
        return [one.take(without_contained(from_numpy(one.boxes), MOST_SHARED)) for one in found]


def open_network() -> Any:
    """Raises :class:`~backend.core.errors.WeightsError` for a damaged file."""
    from modules.detection.yolo import load_detector_network

    spec = find_spec("nudenet")
    assert spec is not None and spec.origin is not None  # else the name was refused
    return load_detector_network(Path(spec.origin).parent / "320n.onnx")
