"""The stage that enlarges the finished pictures."""

from __future__ import annotations

from functools import partial
from typing import cast

from PIL import Image

from backend.activation_model import halved_tiles
from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder, Rung
from modules.pipeline import ImageBatch, Picture
from modules.request import ImageRequest
from modules.upscaler import Upscaler, UpscalerNetwork


class UpscaleStage:
    """Enlarges every picture by the request's ``scale``, with the model "upscaler" of the cache.

    ``upscaler_name`` is what the pictures' parameters call it, ``tile_size`` the longest side of a tile in pixels.
    """

    name = "upscale"

    def __init__(self, models: ModelCache, upscaler_name: str, tile_size: int, ladder: Ladder) -> None:
        self.models, self.upscaler_name, self.tile_size, self.ladder = models, upscaler_name, tile_size, ladder

    def wanted(self, request: ImageRequest) -> bool:
        return request.scale > 1

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        parameters = {"Postprocess upscale by": request.scale, "Postprocess upscaler": self.upscaler_name}

        def enlarged(index: int, picture: Picture) -> Picture:
            def progress(done: int, total: int) -> None:  # the pictures of a batch have one size, so the same number of tiles
                batch.progress(self.name, index * total + done, len(batch.pictures) * total)

            def tiled(tile_size: int) -> Image.Image:
                with self.models.on_device("upscaler") as (network,):
                    return Upscaler(cast(UpscalerNetwork, network), tile_size).upscale(picture.image, request.scale, progress)

            rungs = [Rung(f"tiles of {size} pixels", partial(tiled, size)) for size in halved_tiles(self.tile_size)]
            return picture.changed(self.ladder.climb("upscale", rungs, "scale"), **parameters)

        return batch.with_pictures([enlarged(index, picture) for index, picture in enumerate(batch.pictures)])
