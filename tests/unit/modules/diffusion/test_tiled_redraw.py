"""A picture drawn over in tiles, by every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from support.flux_pictures import picture, pixels
from support.model_pictures import found_model, service_of
from support.slow import sampled
from support.small_flux import write_small_flux
from support.small_flux2 import write_klein
from support.small_z_image import write_z_image

from backend.core.timeline import Timeline
from bench.support.tiny_models import write_tiny_model
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.diffusion.tiled_redraw import redraw_in_tiles
from modules.diffusion.tiles import TileGrid, tile_grid

FLUX1 = ("dev", "fill", "kontext", "canny")
KINDS = (*FLUX1, "klein", "klein-base", "z-image", "z-image-base", "sdxl", "sd15")
SIZE = (96, 64)
WHOLE, TWO = tile_grid(SIZE, 96, 16), tile_grid(SIZE, 64, 16)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiffusionService]:
    @cache
    def made(kind: str) -> DiffusionService:
        folder = tmp_path_factory.mktemp("models") / kind
        if kind in FLUX1:
            write_small_flux(folder, kind)
        elif kind.startswith("klein"):
            folder.mkdir()
            write_klein(folder, distilled=kind == "klein")
        elif kind.startswith("z-image"):
            folder.mkdir()
            write_z_image(folder, turbo=kind == "z-image")
        else:
            write_tiny_model(folder, kind)
        return service_of(found_model(folder))

    return made


def asked(service: DiffusionService, **changes: Any) -> DenoiseRequest:
    """Two pictures, with what the model cannot do without."""
    image, has = picture().resize(SIZE), service.profile.inputs
    given: dict[str, Any] = {
        "prompts": ("a red fox",) * 2,
        "seeds": (3, 4),
        "steps": 3,
        "guidance": 3.5,
        "images": (image,) * 2,
        "strength": 0.6,
        "negative": "blurry" if has.negative_prompt else "",
        "references": ((image,),) * 2 if has.references[0] else (),
        "controls": (image,) * 2 if "control_image" in has.needs else (),
    }
    return DenoiseRequest(width=SIZE[0], height=SIZE[1], **{**given, **changes})


def redrawn(
    service: DiffusionService, request: DenoiseRequest, grid: TileGrid, batch: int = 2, report: Any = None
) -> list[np.ndarray]:
    monitor = Monitor(Timeline(), report)
    images = redraw_in_tiles(service, request, grid, batch, request.prompts[:1] * len(grid), monitor)
    return [pixels(image) for image in images]


@pytest.mark.parametrize("kind", sampled(KINDS, 2))
def test_one_tile_is_one_pass_and_the_batch_changes_nothing(services: Any, kind: str) -> None:
    service = services(kind)
    request = asked(service)
    plain = [pixels(service.generate(request.only(index), Monitor(Timeline()))[0]) for index in range(2)]
    for one, other in zip(plain, redrawn(service, request, WHOLE), strict=True):
        assert one.std() > 1 and np.abs(one - other).max() <= 1, "the steps of one tile are those of one pass"
    told: list[tuple[int, int]] = []
    two = redrawn(service, request, TWO, 2, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and told == sorted(told)
    for one, other, once in zip(two, redrawn(service, request, TWO, 1), plain, strict=True):
        assert one.shape == once.shape and np.abs(one - other).max() <= 1
        assert not np.array_equal(one, once)


def test_latents_can_be_resized_in_place_of_pixels(services: Any) -> None:
    service = services("dev")
    small = (picture().resize((48, 32)),) * 2
    request = asked(service, images=small, latent_resize="bilinear")
    plain = pixels(service.generate(request.only(0), Monitor(Timeline()))[0])
    assert np.abs(plain - redrawn(service, request, WHOLE)[0]).max() <= 1
    assert redrawn(service, request, TWO)[0].shape == plain.shape
