"""Upscales in tiles with a network of the model cache; with smaller tiles where the device's memory is short."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

from PIL import Image

from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback, Step, Strategy
from backend.planning.upscale_tiles import smaller_tiles
from modules.upscaling.tiled import TileProgress, Upscaler, UpscalerNetwork


class UpscaleService:
    """Upscales with the upscalers of the cache.

    ``upscalers`` has the name in the cache of each upscaler, the default one first; ``tile_size`` is the longest side
    of a tile in pixels.
    """

    def __init__(self, models: ModelCache, upscalers: Mapping[str, str], tile_size: int, fallback: OomFallback) -> None:
        self.models, self.upscalers, self.tile_size, self.fallback = models, upscalers, tile_size, fallback

    @property
    def default(self) -> str:
        return next(iter(self.upscalers))

    def upscale(
        self, image: Image.Image, scale: float, lower: str, progress: TileProgress, name: str = ""
    ) -> Image.Image:
        """The picture at ``scale`` times its size, by the upscaler of that name.

        ``lower`` is the input that makes the picture smaller, for the error when memory is too small.
        """
        cached = self.upscalers[name or self.default]

        def tiled(tile_size: int) -> Image.Image:
            with self.models.on_device(cached) as (network,):
                return Upscaler(cast(UpscalerNetwork, network), tile_size).upscale(image, scale, progress)

        strategies = [
            Strategy(f"tiles of {size} pixels", partial(tiled, size)) for size in smaller_tiles(self.tile_size)
        ]
        return self.fallback.run(Step("upscale", (cached,), image.size, lower), strategies)
