"""MediaPipe's detectors of faces, by the names that ADetailer gives them, where the package mediapipe is installed.

They carry their models in the package, compute on the CPU and take a few megabytes, so they are no models of the cache.
What they find is made into boxes and masks as ADetailer does it (``adetailer/mediapipe.py``).

Only a mediapipe with ``solutions`` is used, which 0.10.21 was the last to have on every system. Later ones have no
models in them, and report their use to their maker from inside of a prediction (google-ai-edge/mediapipe, issue 6291; a
look-up of the address was seen).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from modules.detection.detections import Detections, Floats, Mask, bounding_box, rectangle_masks

NAMES = ("mediapipe_face_full", "mediapipe_face_short", "mediapipe_face_mesh", "mediapipe_face_mesh_eyes_only")
INSTALL = "pip install --no-deps -r requirements-mediapipe.txt"
MAX_MESHES = 20
"""Faces that a mesh is laid over at most, as in ADetailer."""


def why_not() -> str:
    """What keeps these detectors from running here, "" when nothing does. Does not import mediapipe, which takes
    seconds."""
    spec = find_spec("mediapipe")
    if spec is None:
        return f"MediaPipe's detectors need the package mediapipe: {INSTALL}"
    if not any(Path(place, "python", "solutions").is_dir() for place in spec.submodule_search_locations or ()):
        return f"the mediapipe that is installed has no models in it and reports its use over the network: {INSTALL}"
    return ""


class MediaPipeFaces:
    """Opens a detector when it is first asked for, and keeps the few that were used last."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=4)(open_solution)

    def detect(self, images: Sequence[Image.Image], confidence: float, name: str) -> list[Detections]:
        """The faces (or pairs of eyes) in each RGB image, most confident first. A mesh has no confidence: it counts as
        1.

        Args:
            confidence: Only what MediaPipe's first look is more confident of than this is found, 0 to 1.
            name: One of ``NAMES``.
        """
        solution, find = self._open(name, confidence), find_meshes if "mesh" in name else find_boxes
        return [find(solution, image.convert("RGB"), name) for image in images]


def open_solution(name: str, confidence: float) -> Any:
    from mediapipe.python import solutions  # type: ignore[import-not-found]  # not one of the requirements

    if "mesh" in name:
        return solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=MAX_MESHES, min_detection_confidence=confidence
        )
    return solutions.face_detection.FaceDetection(
        model_selection=int(name == "mediapipe_face_full"), min_detection_confidence=confidence
    )


def find_boxes(solution: Any, image: Image.Image, name: str) -> Detections:
    found = sorted(solution.process(np.array(image)).detections or (), key=lambda one: -one.score[0])
    places = [
        one.location_data.relative_bounding_box for one in found
    ]  # in shares of the picture, which they may leave
    corners = [(place.xmin, place.ymin, place.xmin + place.width, place.ymin + place.height) for place in places]
    boxes = np.array(corners, np.float64).reshape(-1, 4).clip(0, 1) * (*image.size, *image.size)
    detections = Detections(
        boxes, rectangle_masks(boxes, image.size), np.array([one.score[0] for one in found], np.float64)
    )
    return detections.take(np.flatnonzero(detections.masks.any(axis=(1, 2))))


def find_meshes(solution: Any, image: Image.Image, name: str) -> Detections:
    masks = []
    for mesh in solution.process(np.array(image)).multi_face_landmarks or ():
        points = np.array([(point.x, point.y) for point in mesh.landmark], np.float64) * np.array(
            image.size, np.float64
        )
        masks.append(
            filled_hulls([points[eye] for eye in eyes()] if name.endswith("eyes_only") else [points], image.size)
        )
    masks = [mask for mask in masks if mask.any()]
    boxes = np.array([bounding_box(mask) for mask in masks], np.float64).reshape(-1, 4)
    return Detections(boxes, np.array(masks, np.uint8).reshape(-1, image.height, image.width), np.ones(len(masks)))


def eyes() -> list[list[int]]:
    """The numbers of a mesh's points around either eye."""
    from mediapipe.python.solutions import face_mesh  # type: ignore[import-not-found]

    return [
        sorted({point for edge in edges for point in edge})
        for edges in (face_mesh.FACEMESH_LEFT_EYE, face_mesh.FACEMESH_RIGHT_EYE)
    ]


def filled_hulls(groups: Iterable[Floats], size: tuple[int, int]) -> Mask:
    """H x W, 255 within the convex hull of each group of points, N x 2 in pixels, their fractions dropped as
    ADetailer does."""
    import cv2

    mask = Image.new("L", size)
    for points in groups:
        ImageDraw.Draw(mask).polygon(cv2.convexHull(points.astype(np.int32)).reshape(-1).tolist(), fill=255)
    return np.asarray(mask)
