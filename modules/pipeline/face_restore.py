"""The stage that restores the faces of the finished pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from modules.face_restoration.discovery import NO_FACE_RESTORER
from modules.pipeline.base import ImageBatch, Services, Stage
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:
    from modules.face_restoration.service import FaceRestoration


class FaceRestoreStage(Stage):
    """Restores every face that the default detector finds in a picture."""

    name = "face_enhance"
    aliases = ("postprocessing_gfpgan",)
    inputs = ("face_enhance",)
    models = ("detectors", "face_restorer")
    settings = ("face_detector", "face_restorer")
    without_models = NO_FACE_RESTORER

    def __init__(self, restoration: FaceRestoration) -> None:
        self.restoration = restoration

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        from modules.detection.yolo import offline_ultralytics

        offline_ultralytics(scratch / "ultralytics")
        import spandrel  # noqa: F401
        import ultralytics.nn.tasks  # noqa: F401

    @classmethod
    def build(cls, services: Services) -> Self:
        assert services.face_restoration is not None
        return cls(services.face_restoration)

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
