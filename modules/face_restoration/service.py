"""The service that restores faces: the default detector finds them, and a borrowed network redraws each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from PIL import Image

from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback, Strategy
from modules.detection.detections import Floats
from modules.detection.service import Detectors
from modules.face_restoration.network import restored
from modules.upscaling.discovery import FACE_RESTORER

CONFIDENCE = 0.5
"""Only faces that the detector is so sure of are restored."""


class FaceRestoration:
    """Restores with the face restorer of the cache. ``label`` is the network's name in the pictures' files."""

    def __init__(self, models: ModelCache, detectors: Detectors, fallback: OomFallback, label: str) -> None:
        self.models, self.detectors, self.fallback, self.label = models, detectors, fallback, label

    def restore(
        self, images: Sequence[Image.Image], lower: str, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[tuple[Image.Image, int]]:
        """Every RGB image with all of its faces restored, and how many these are.

        ``lower`` is the input that asked for it, for the error when memory is too small; ``progress`` is told the faces
        done and to do.
        """
        found = self.detectors.detect(images, CONFIDENCE)
        total, finished = sum(map(len, found)), count(1)

        def one(image: Image.Image, box: Floats) -> Image.Image:
            with self.models.on_device(FACE_RESTORER) as (network,):
                return restored(network, image, box)

        def whole(image: Image.Image, boxes: Floats) -> Image.Image:
            for box in boxes:
                image = self.fallback.run("restore", [Strategy("one face at a time", partial(one, image, box))], lower)
                progress(next(finished), total)
            return image

        return [(whole(image, faces.boxes), len(faces)) for image, faces in zip(images, found, strict=True)]
