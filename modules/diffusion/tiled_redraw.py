"""Draws large pictures over in tiles: what WebUIs do with the script Ultimate SD upscale, without its seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.diffusion.tile_batches import stitched
from modules.diffusion.tiles import TileGrid, Tiles

if TYPE_CHECKING:
    from modules.diffusion.base import DiffusionService


def redraw_in_tiles(
    service: DiffusionService,
    request: DenoiseRequest,
    grid: TileGrid,
    batch: int,
    prompts: Sequence[str],
    monitor: Monitor,
) -> list[Image.Image]:
    """What ``service.generate`` makes of a request that begins from pictures, one picture after the other and each in
    the tiles of ``grid``.

    The prompts are those of the tiles, row by row. ``batch`` tiles are denoised at a time, and the autoencoder takes
    one at a time, so the device holds no more than those and the latents of the picture. Reports and errors are those
    of :meth:`~modules.diffusion.base.DiffusionService.generate`.
    """
    count = len(request.seeds)
    images = []
    for index in range(count):
        tiles = _tiles_of(service, request.only(index), grid, batch, prompts)
        drawn = service.generate(tiles, monitor.part(index, count))
        with monitor.timeline.span("stitch"):
            images.append(stitched(drawn, grid))
    return images


def _tiles_of(
    service: DiffusionService, request: DenoiseRequest, grid: TileGrid, batch: int, prompts: Sequence[str]
) -> DenoiseRequest:
    """The request for the tiles of the one picture of a request."""
    images = grid.cut(request.images[0])
    width, height = grid.tile_size
    return replace(
        request,
        prompts=tuple(prompts),
        seeds=request.seeds * len(grid),
        width=width,
        height=height,
        images=images,
        masks=grid.cut(request.masks[0]) if request.masks else (),
        # a model that edits looks at what it draws over, as in the detail pass
        references=tuple((image,) for image in images) if service.profile.inputs.references[0] else (),
        controls=grid.cut(request.controls[0]) if request.controls else (),
        go_fast=False,
        tiles=Tiles(grid, min(batch, len(grid)), request.images[0] if request.latent_resize else None),
    )
