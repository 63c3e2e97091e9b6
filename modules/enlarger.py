"""The service that enlarges: tiles through a borrowed network, smaller ones where the device's memory is short."""

from __future__ import annotations

from functools import partial
from typing import cast

from PIL import Image

from backend.activation_model import halved_tiles
from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder, Rung
from modules.upscaler import TileProgress, Upscaler, UpscalerNetwork


class Enlarger:
    """Enlarges with the model "upscaler" of the cache.

    ``name`` is what the pictures' parameters call it, ``tile_size`` the longest side of a tile in pixels.
    """

    def __init__(self, models: ModelCache, name: str, tile_size: int, ladder: Ladder) -> None:
        self.models, self.name, self.tile_size, self.ladder = models, name, tile_size, ladder

    def enlarge(self, image: Image.Image, scale: float, lower: str, progress: TileProgress) -> Image.Image:
        """The picture at ``scale`` times its size. ``lower`` is the input that makes it smaller, for the error when memory is too small."""

        def tiled(tile_size: int) -> Image.Image:
            with self.models.on_device("upscaler") as (network,):
                return Upscaler(cast(UpscalerNetwork, network), tile_size).upscale(image, scale, progress)

        rungs = [Rung(f"tiles of {size} pixels", partial(tiled, size)) for size in halved_tiles(self.tile_size)]
        return self.ladder.climb("upscale", rungs, lower)
