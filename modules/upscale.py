"""The stage that enlarges the finished pictures."""

from __future__ import annotations

from typing import cast

from backend.model_cache_optimizer import ModelCache
from modules.pipeline import ImageBatch, Picture
from modules.request import ImageRequest
from modules.upscaler import Upscaler, UpscalerNetwork


class UpscaleStage:
    """Enlarges every picture by the request's ``scale``, with the model "upscaler" of the cache.

    ``upscaler_name`` is what the pictures' parameters call it, ``tile_size`` the longest side of a tile in pixels.
    """

    name = "upscale"

    def __init__(self, models: ModelCache, upscaler_name: str, tile_size: int) -> None:
        self.models, self.upscaler_name, self.tile_size = models, upscaler_name, tile_size

    def wanted(self, request: ImageRequest) -> bool:
        return request.scale > 1

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        parameters = {"Postprocess upscale by": request.scale, "Postprocess upscaler": self.upscaler_name}

        def enlarged(index: int, picture: Picture) -> Picture:
            def progress(done: int, total: int) -> None:  # the pictures of a batch have one size, so the same number of tiles
                batch.progress(self.name, index * total + done, len(batch.pictures) * total)

            return picture.changed(upscaler.upscale(picture.image, request.scale, progress), **parameters)

        with self.models.on_device("upscaler") as (network,):
            upscaler = Upscaler(cast(UpscalerNetwork, network), self.tile_size)
            return batch.with_pictures([enlarged(index, picture) for index, picture in enumerate(batch.pictures)])
