"""Hires fix: the pictures are upscaled, then redrawn at that size, as the WebUI does before ADetailer.

A model composes best at its native size. A second, weaker pass at a larger size adds the details for which the first
had no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from PIL import Image

from backend.core.cancellation import Check, never_canceled
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.diffusion.sampler_names import MOST_STRENGTH
from modules.pipeline.base import ImageBatch, Services, Stage
from modules.request.image_request import Hires, ImageRequest

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
    """

    name = "hires"
    aliases = ("hires_fix",)
    inputs = ("enable_hr", "hr_scale", "hr_steps", "hr_upscaler", "denoising_strength")
    models = ("upscaler",)
    settings = ("upscaler", "upscale_tile_size")

    def __init__(self, service: DiffusionService, upscale_service: UpscaleService) -> None:
        self.service, self.upscale_service = service, upscale_service

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        import spandrel  # noqa: F401

    @classmethod
    def build(cls, services: Services) -> Self:
        assert services.upscale is not None
        return cls(services.diffusion, services.upscale)

    def wanted(self, request: ImageRequest) -> bool:
        return request.hires is not None

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
        progress = partial(batch.progress, self.name)
        images = self.service.generate(denoise_request, batch.timeline, progress, batch.check, batch.latent_sink)
        if request.mask:
            mask = inpaint_mask(request.mask, size)
            kept = [image.resize(size, Image.Resampling.LANCZOS) for image in upscaled]
            images = [Image.composite(new, old, mask) for new, old in zip(images, kept, strict=True)]
        parameters = self.parameters(request, hires, denoise_request.sampler_used)
        return batch.with_pictures(
            [picture.changed(image, **parameters) for picture, image in zip(batch.pictures, images, strict=True)]
        )

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
            prompts=(request.prompt,) * len(images),
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

    def parameters(self, request: ImageRequest, hires: Hires, sampler_used: str) -> dict[str, object]:
        """What the files say about the second pass, under the WebUI's names."""
        network = request.upscaler or self.upscale_service.default
        return {
            "Hires sampler": None if request.sampler == sampler_used else sampler_used,
            "Denoising strength": hires.strength,
            "Hires upscale": hires.scale,
            "Hires steps": hires.steps or None,
            "Hires upscaler": network if hires.upscaler == "ESRGAN" else hires.upscaler,
        }

    def size(self, image: Image.Image, hires: Hires) -> tuple[int, int]:
        """Width and height of the second pass."""
        return self.service.profile.canvas.fitted(image.width * hires.scale, image.height * hires.scale)

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
