"""The stage ``upscale`` with the embedded upscaler."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from support.upscaling import picture

from backend.core.settings import ROOT
from backend.core.timeline import Timeline
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.pipeline.upscale import UpscaleStage
from modules.request.image_request import ImageRequest
from modules.upscaling.discovery import cached_as
from modules.upscaling.service import UpscaleService
from modules.upscaling.tiled import UpscalerNetwork, load_upscaler_network

REQUEST = ImageRequest(prompt="a man", width=40, height=30, seed=1, scale=2.0)


@cache
def network() -> UpscalerNetwork:
    return load_upscaler_network(ROOT / "weights" / "embedded" / "upscaler.safetensors")


class Negative(UpscalerNetwork):
    """The upscaler's picture as a negative."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 1 - super().forward(pixels)


def stage(tile_size: int = 64) -> UpscaleStage:
    models = ModelCache(torch.device("cpu"))
    models.register("upscaler", network)
    return UpscaleStage(UpscaleService(models, {"ours": "upscaler"}, tile_size, OomFallback()))


def test_it_is_wanted_only_above_scale_1() -> None:
    assert stage().wanted(replace(REQUEST, scale=1.5)) and not stage().wanted(replace(REQUEST, scale=1.0))


def test_every_picture_is_upscaled_and_its_file_says_so() -> None:
    told: list[tuple[str, int, int]] = []
    pictures = tuple(Picture(picture(40, 30), seed, {"Steps": 4}) for seed in (1, 2))
    batch = ImageBatch(pictures, Timeline(), lambda *news: told.append(news))
    result = stage(tile_size=32).run(batch, REQUEST).pictures
    assert [(one.image.size, one.seed) for one in result] == [((80, 60), 1), ((80, 60), 2)]
    assert dict(result[1].parameters) == {"Steps": 4, "Postprocess upscale by": 2.0, "Postprocess upscaler": "ours"}
    assert told == [("upscale", index + 1, len(told)) for index in range(len(told))] and len(told) >= 2


def test_the_request_names_the_upscaler() -> None:
    models = ModelCache(torch.device("cpu"))
    models.register("upscaler", network)
    models.register("upscaler negative", lambda: Negative(network().network, 4))
    batch = ImageBatch((Picture(picture(40, 30), 1, {}),), Timeline(), no_progress)
    several = UpscaleStage(UpscaleService(models, cached_as(("ours", "negative")), 64, OomFallback()))
    plain, other = (several.run(batch, replace(REQUEST, upscaler=name)).pictures[0] for name in ("", "negative"))
    assert [one.parameters["Postprocess upscaler"] for one in (plain, other)] == ["ours", "negative"]
    assert abs(np.asarray(plain.image).astype(int) + np.asarray(other.image) - 255).max() <= 1
