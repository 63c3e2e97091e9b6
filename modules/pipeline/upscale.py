"""The stage that upscales the finished pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from modules.pipeline.base import ImageBatch, Picture, Services, Stage
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:
    from modules.upscaling.service import UpscaleService


class UpscaleStage(Stage):
    """Upscales every picture by the request's ``scale``."""

    name = "upscale"
    aliases = ("postprocessing_upscale",)
    inputs = ("scale", "upscaler")
    off = 1.0
    models = ("upscaler",)
    settings = ("upscaler", "upscale_tile_size")

    def __init__(self, upscale_service: UpscaleService) -> None:
        self.upscale_service = upscale_service

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        import spandrel  # noqa: F401

    @classmethod
    def build(cls, services: Services) -> Self:
        assert services.upscale is not None
        return cls(services.upscale)

    def wanted(self, request: ImageRequest) -> bool:
        return request.scale > 1

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        parameters = {
            "Postprocess upscale by": request.scale,
            "Postprocess upscaler": request.upscaler or self.upscale_service.default,
        }

        def upscaled(index: int, picture: Picture) -> Picture:
            def progress(done: int, total: int) -> None:
                # the pictures of a batch have one size, so all have the same number of tiles
                batch.progress(self.name, index * total + done, len(batch.pictures) * total)

            image = self.upscale_service.upscale(picture.image, request.scale, "scale", progress, request.upscaler)
            return picture.changed(image, **parameters)

        return batch.with_pictures([upscaled(index, picture) for index, picture in enumerate(batch.pictures)])
