"""The stage that restores the faces of the finished pictures."""

from __future__ import annotations

from functools import partial

from modules.face_restoration.service import FaceRestoration
from modules.pipeline.base import ImageBatch
from modules.request.image_request import ImageRequest


class RestoreFacesStage:
    """Restores every face that is found in a picture."""

    name = "face_enhance"

    def __init__(self, restoration: FaceRestoration) -> None:
        self.restoration = restoration

    def wanted(self, request: ImageRequest) -> bool:
        return request.face_enhance

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        results = self.restoration.restore(
            [picture.image for picture in batch.pictures], self.name, partial(batch.progress, self.name)
        )
        return batch.with_pictures(
            picture.changed(image, **{"Face restoration": self.restoration.label, "Faces restored": faces})
            for picture, (image, faces) in zip(batch.pictures, results, strict=True)
        )
