"""Hires fix: the pictures are upscaled, then redrawn at that size, as the WebUI does before ADetailer.

A model composes best at its native size. A second, weaker pass at a larger size adds the details for which the first
had no pixels. Far beyond its native size, or where memory is short, that pass draws overlapping tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from PIL import Image

from backend.core.cancellation import Check, never_canceled
from backend.planning.redraw_tiles import MOST_IN_ONE_PASS
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.diffusion.sampler_names import MOST_STRENGTH
from modules.diffusion.tiles import TileGrid, tile_grid
from modules.pipeline.base import ImageBatch, Services, Stage
from modules.request.adetailer_unit import SEPARATOR, region_prompt, region_prompts
from modules.request.image_request import Hires, ImageRequest
from modules.request.sizes import MAX_FINISHED_PIXELS

if TYPE_CHECKING:
    from modules.diffusion.base import DiffusionService
    from modules.upscaling.service import UpscaleService

LATENT_MODES: Mapping[str, str] = MappingProxyType(
    {"Latent": "bilinear", "Latent (nearest)": "nearest-exact", "Latent (bicubic)": "bicubic"}
)
"""Upscalers that resize the latents instead of the picture, with their interpolation modes. The result is blurred, so
the second pass has to be strong."""


class HiresStage(Stage):
    """Upscales every picture by ``hires.scale``, to the nearest size on the family's grid, and redraws it with its own
    seed.

    What the input mask keeps is only upscaled. The upscaler is that of the request, as in the stage ``upscale``.
    ``tile_batch`` tiles are drawn at a time; a picture of up to ``one_pass_pixels`` fits into memory in one pass.
    """

    name = "hires"
    aliases = ("hires_fix",)
    inputs = ("enable_hr", "hr_scale", "hr_steps", "hr_upscaler", "denoising_strength", "hr_prompt", "hr_tiles")
    models = ("upscaler",)
    settings = ("upscaler", "upscale_tile_size")

    def __init__(
        self,
        service: DiffusionService,
        upscale_service: UpscaleService,
        tile_batch: int = 1,
        one_pass_pixels: int = MAX_FINISHED_PIXELS,
    ) -> None:
        self.service, self.upscale_service = service, upscale_service
        self.tile_batch, self.one_pass_pixels = tile_batch, one_pass_pixels

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        import spandrel  # noqa: F401

    @classmethod
    def build(cls, services: Services) -> Self:
        assert services.upscale is not None
        return cls(services.diffusion, services.upscale, services.plan.max_tile_batch, services.plan.one_pass_pixels)

    def wanted(self, request: ImageRequest) -> bool:
        return request.hires is not None

    def notices(self, request: ImageRequest) -> list[str]:
        """Of the pass' own prompts, and what of the request is not for tiles."""
        hires = request.hires
        assert hires is not None
        notes: list[str] = []
        prompts = region_prompts(hires.prompt, request.prompt) if hires.prompt else ()
        for prompt in prompts:
            notes += self.service.prompt_notes("hr_prompt", prompt) if prompt != request.prompt else []
        grid = self.grid(hires, self.fitted(*request.picture_size, hires))
        if grid and (beyond := hires.prompt.count(SEPARATOR) + 1 - len(grid)) > 0:
            notes.append(f"hr_prompt: the last {beyond} prompts are not used, there are {grid} tiles")
        if grid and request.go_fast:
            notes.append("go_fast: is not used in the tiles of Hires fix")
        if grid and request.references and not self.service.profile.inputs.references[0]:
            notes.append("input_image, images: are not looked at in the tiles of Hires fix")
        return notes

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        hires = request.hires
        assert hires is not None
        size = self.size(batch.pictures[0].image, hires)
        with batch.timeline.span("upscale"):
            upscaled = [
                self.upscaled(picture.image, hires, request.upscaler, batch.check) for picture in batch.pictures
            ]
        seeds = [picture.seed for picture in batch.pictures]
        denoise_request = self.denoise_request(request, hires, upscaled, seeds, size)
        denoise_request = replace(denoise_request, loras=batch.lora_files(request.loras))
        images, grid = self._redrawn(denoise_request, request, hires, batch)
        if request.mask:
            mask = inpaint_mask(request.mask, size)
            kept = [image.resize(size, Image.Resampling.LANCZOS) for image in upscaled]
            images = [Image.composite(new, old, mask) for new, old in zip(images, kept, strict=True)]
        parameters = self.parameters(request, hires, denoise_request.sampler_used, grid)
        return batch.with_pictures(
            [picture.changed(image, **parameters) for picture, image in zip(batch.pictures, images, strict=True)]
        )

    def _redrawn(
        self, denoise_request: DenoiseRequest, request: ImageRequest, hires: Hires, batch: ImageBatch
    ) -> tuple[list[Image.Image], TileGrid | None]:
        """The pictures of the second pass, and the tiles that they were drawn in. Where one pass is short of memory,
        tiles take its place."""
        from modules.diffusion.tiled_redraw import redraw_in_tiles

        monitor = batch.monitor(self.name)
        size = (denoise_request.width, denoise_request.height)
        grid = self.grid(hires, size)
        if grid is None:
            instead = None if hires.tiles == "off" or hires.strength == 0 else self._all_tiles(size)
            images = self.service.generate_if_it_fits(denoise_request, monitor, gives_up=instead is not None)
            if images is not None:
                return images, None
            grid = instead
        assert grid is not None
        prompts = [region_prompt(hires.prompt, request.prompt, index) or request.prompt for index in range(len(grid))]
        images = redraw_in_tiles(self.service, denoise_request, grid, self.tile_batch, prompts, monitor)
        return images, grid

    def grid(self, hires: Hires, size: tuple[int, int]) -> TileGrid | None:
        """The tiles in which a second pass of this width and height is drawn, None for one pass."""
        grid = self._all_tiles(size)
        if hires.tiles == "off" or hires.strength == 0 or grid is None:
            return None
        pixels = size[0] * size[1]
        large = pixels > min(MOST_IN_ONE_PASS * self.service.profile.native**2, self.one_pass_pixels)
        return grid if large or hires.needs_tiles else None

    def _all_tiles(self, size: tuple[int, int]) -> TileGrid | None:
        """The tiles of a picture, None for one that is no larger than a tile."""
        canvas = self.service.profile.canvas
        grid = tile_grid(size, canvas.native, canvas.multiple)
        return grid if len(grid) > 1 else None

    def denoise_request(
        self,
        request: ImageRequest,
        hires: Hires,
        images: Sequence[Image.Image],
        seeds: Sequence[int],
        size: tuple[int, int],
    ) -> DenoiseRequest:
        """The second pass over these images, at ``size`` (width, height). A model that fills reads the mask too."""
        mask = request.mask if self.service.profile.inputs.fills else None
        return DenoiseRequest(
            prompts=(region_prompt(hires.prompt, request.prompt, 0) or request.prompt,) * len(images),
            seeds=tuple(seeds),
            width=size[0],
            height=size[1],
            steps=hires.steps or request.num_inference_steps,
            guidance=request.guidance_scale,
            images=tuple(images),
            masks=(mask.resize(size, Image.Resampling.BILINEAR),) * len(images) if mask else (),
            strength=min(hires.strength, MOST_STRENGTH),
            schedule=request.scheduler,
            go_fast=request.go_fast,
            negative=request.negative_prompt,
            references=(request.references,) * len(images) if request.references else (),
            controls=(request.control_image,) * len(images) if request.control_image else (),
            latent_resize=LATENT_MODES.get(hires.upscaler, ""),
        )

    def parameters(
        self, request: ImageRequest, hires: Hires, sampler_used: str, grid: TileGrid | None = None
    ) -> dict[str, object]:
        """What the files say about the second pass, under the WebUI's names."""
        network = request.upscaler or self.upscale_service.default
        return {
            "Hires sampler": None if request.sampler == sampler_used else sampler_used,
            "Denoising strength": hires.strength,
            "Hires upscale": hires.scale,
            "Hires steps": hires.steps or None,
            "Hires prompt": hires.prompt or None,
            "Hires tiles": str(grid) if grid else None,
            "Hires upscaler": network if hires.upscaler == "ESRGAN" else hires.upscaler,
        }

    def size(self, image: Image.Image, hires: Hires) -> tuple[int, int]:
        """Width and height of the second pass."""
        return self.fitted(image.width, image.height, hires)

    def fitted(self, width: int, height: int, hires: Hires) -> tuple[int, int]:
        """The same for a first pass of this size."""
        return self.service.profile.canvas.fitted(width * hires.scale, height * hires.scale)

    def upscaled(
        self, image: Image.Image, hires: Hires, upscaler: str = "", check: Check = never_canceled
    ) -> Image.Image:
        """The picture at the size of the second pass, or unchanged where its latents are resized. ``upscaler`` is a
        name, "" the default; ``check`` is called after every tile."""
        size = self.size(image, hires)
        if hires.upscaler in LATENT_MODES and hires.strength > 0:  # at strength 0 nothing is encoded to latents
            return image
        if hires.upscaler == "ESRGAN" and size != image.size:
            scale = max(1.0, size[0] / image.width, size[1] / image.height)
            image = self.upscale_service.upscale(image, scale, "hr_scale", lambda done, total: check(), upscaler)
        return image.resize(size, Image.Resampling.LANCZOS)
