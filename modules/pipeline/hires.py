"""Hires fix: the pictures enlarged, then drawn over at that size, as the WebUI does before its detail pass.

A model draws the composition best at its native size and details best at a larger one, so a second, weaker pass adds
what the first had no pixels for.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from PIL import Image

from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.diffusion.sampler_names import MOST_STRENGTH
from modules.pipeline.base import ImageBatch
from modules.request.image_request import Hires, ImageRequest
from modules.upscaling.service import UpscaleService

LATENT_MODES: Mapping[str, str] = MappingProxyType(
    {"Latent": "bilinear", "Latent (nearest)": "nearest-exact", "Latent (bicubic)": "bicubic"}
)
"""Upscalers that enlarge the latents in place of the picture; what they blur, a strong second pass has to draw anew."""


class HiresStage:
    """Enlarges every picture by ``hires.scale``, to the nearest size on the family's grid, and redraws it with its own
    seed.

    What an input mask keeps is enlarged only. The upscaler is the request's, as in the stage that enlarges the finished
    pictures.
    """

    name = "hires"

    def __init__(self, service: DiffusionService, upscale_service: UpscaleService) -> None:
        self.service, self.upscale_service = service, upscale_service

    def wanted(self, request: ImageRequest) -> bool:
        return request.hires is not None

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        hires = request.hires
        assert hires is not None
        with batch.timeline.span("enlarge"):
            enlarged = [self.enlarged(picture.image, hires, request.upscaler) for picture in batch.pictures]
        width, height = self.size(batch.pictures[0].image, hires)
        denoise_request = DenoiseRequest(
            prompts=(request.prompt,) * len(enlarged),
            seeds=tuple(picture.seed for picture in batch.pictures),
            width=width,
            height=height,
            steps=hires.steps or request.num_inference_steps,
            guidance=request.guidance_scale,
            images=tuple(enlarged),
            strength=min(hires.strength, MOST_STRENGTH),
            schedule=request.scheduler,
            go_fast=request.go_fast,
            negative=request.negative_prompt,
            latent_resize=LATENT_MODES.get(hires.upscaler, ""),
        )
        drawn = self.service.generate(
            denoise_request, batch.timeline, lambda done, total: batch.progress(self.name, done, total)
        )
        if request.mask:
            free = inpaint_mask(request.mask, (width, height))
            kept = [image.resize((width, height), Image.Resampling.LANCZOS) for image in enlarged]
            drawn = [Image.composite(new, old, free) for new, old in zip(drawn, kept, strict=True)]
        parameters = {
            "Hires sampler": None if request.sampler == denoise_request.sampler_used else denoise_request.sampler_used,
            "Denoising strength": hires.strength,
            "Hires upscale": hires.scale,
            "Hires steps": hires.steps or None,
            "Hires upscaler": (request.upscaler or self.upscale_service.default)
            if hires.upscaler == "ESRGAN"
            else hires.upscaler,
        }
        return batch.with_pictures(
            [picture.changed(image, **parameters) for picture, image in zip(batch.pictures, drawn, strict=True)]
        )

    def size(self, image: Image.Image, hires: Hires) -> tuple[int, int]:
        """The size that is redrawn, in pixels."""
        return self.service.family.canvas.fitted(image.width * hires.scale, image.height * hires.scale)

    def enlarged(self, image: Image.Image, hires: Hires, upscaler: str = "") -> Image.Image:
        """The picture at the size that is redrawn, or as it is where its latents are enlarged. ``upscaler`` is the
        name of one, "" the default."""
        size = self.size(image, hires)
        if hires.upscaler in LATENT_MODES and hires.strength > 0:  # else there will be no latents
            return image
        if hires.upscaler == "ESRGAN" and size != image.size:
            image = self.upscale_service.upscale(
                image,
                max(1.0, size[0] / image.width, size[1] / image.height),
                "hr_scale",
                lambda done, total: None,
                upscaler,
            )
        return image.resize(size, Image.Resampling.LANCZOS)
