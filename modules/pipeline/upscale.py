"""The stage that enlarges the finished pictures."""

from __future__ import annotations

from modules.pipeline.base import ImageBatch, Picture
from modules.request.image_request import ImageRequest
from modules.upscaling.service import UpscaleService


class UpscaleStage:
    """Enlarges every picture by the request's ``scale``."""

    name = "upscale"

    def __init__(self, upscale_service: UpscaleService) -> None:
        self.upscale_service = upscale_service

    def wanted(self, request: ImageRequest) -> bool:
        return request.scale > 1

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        parameters = {
            "Postprocess upscale by": request.scale,
            "Postprocess upscaler": request.upscaler or self.upscale_service.default,
        }

        def enlarged(index: int, picture: Picture) -> Picture:
            def progress(
                done: int, total: int
            ) -> None:  # the pictures of a batch have one size, so the same number of tiles
                batch.progress(self.name, index * total + done, len(batch.pictures) * total)

            return picture.changed(
                self.upscale_service.upscale(picture.image, request.scale, "scale", progress, request.upscaler),
                **parameters,
            )

        return batch.with_pictures([enlarged(index, picture) for index, picture in enumerate(batch.pictures)])
