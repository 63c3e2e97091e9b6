"""The stage that restores the faces of the finished pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

from PIL import Image

from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder, Rung
from modules.adetailer.detectors import Detectors
from modules.adetailer.masks import Floats
from modules.face_restorer import restored
from modules.pipeline import ImageBatch
from modules.request import ImageRequest
from modules.upscaler_names import FACE_RESTORER

CONFIDENCE = 0.5
"""Only faces that the detector is so sure of are restored."""


class RestoreFacesStage:
    """Restores every face that the default detector finds. ``label`` is the network's name in the pictures' files."""

    name = "face_enhance"

    def __init__(self, models: ModelCache, detectors: Detectors, ladder: Ladder, label: str) -> None:
        self.models, self.detectors, self.ladder, self.label = models, detectors, ladder, label

    def wanted(self, request: ImageRequest) -> bool:
        return request.face_enhance

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        found = self.detectors.detect([picture.image for picture in batch.pictures], CONFIDENCE)
        total, finished = sum(map(len, found)), count(1)

        def tick() -> None:
            batch.progress(self.name, next(finished), total)

        return batch.with_pictures(
            picture.changed(self.restore(picture.image, faces.boxes, tick), **{"Face restoration": self.label, "Faces restored": len(faces)})
            for picture, faces in zip(batch.pictures, found)
        )

    def restore(self, image: Image.Image, boxes: Floats, tick: Callable[[], None]) -> Image.Image:
        def one(picture: Image.Image, box: Floats) -> Image.Image:
            with self.models.on_device(FACE_RESTORER) as (network,):
                return restored(network, picture, box)

        for box in boxes:
            image = self.ladder.climb(self.name, [Rung("one face at a time", partial(one, image, box))], self.name)
            tick()
        return image
