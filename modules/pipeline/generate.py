"""The first stage: text to image, image to image, or inpainting."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from PIL import Image

from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.pipeline.base import ImageBatch, Picture, Services, Stage
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:
    from modules.diffusion.base import DiffusionService


class GenerateStage(Stage):
    """Generates ``num_outputs`` pictures of the request's size. Picture i has the request's seed plus i."""

    name = "generate"
    required = True
    inputs = (
        "negative_prompt",
        "aspect_ratio",
        "width",
        "height",
        "megapixels",
        "num_inference_steps",
        "guidance_scale",
        "guidance",
        "sampler",
        "scheduler",
        "go_fast",
        "image",
        "mask",
        "prompt_strength",
        "input_image",
        "control_image",
    )

    def __init__(self, service: DiffusionService) -> None:
        self.service = service

    @classmethod
    def build(cls, services: Services) -> Self:
        return cls(services.diffusion)

    def wanted(self, request: ImageRequest) -> bool:
        return True

    def notices(self, request: ImageRequest) -> list[str]:
        notes = self.service.prompt_notes("prompt", request.prompt)
        if request.negative_prompt:
            notes += self.service.prompt_notes("negative_prompt", request.negative_prompt)
        return notes

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        notices = self.service.adapters.check(list(batch.loras.values()))
        batch = replace(batch, notices=(*batch.notices, *notices))
        size = (request.width, request.height)
        image = request.image.resize(size, Image.Resampling.LANCZOS) if request.image else None
        denoise_request = replace(self.denoise_request(request, image), loras=batch.lora_files(request.loras))
        images = self.service.generate(denoise_request, batch.timeline, partial(batch.progress, self.name), batch.check)
        if image and request.mask:
            mask = inpaint_mask(request.mask, size)
            images = [Image.composite(new, image, mask) for new in images]
        parameters = self.parameters(request, denoise_request.sampler_used)
        return batch.with_pictures(
            Picture(new, seed, parameters) for new, seed in zip(images, request.seeds, strict=True)
        )

    def denoise_request(self, request: ImageRequest, image: Image.Image | None) -> DenoiseRequest:
        """What the diffusion service is asked for; ``image`` is the input image at the size of the pictures."""
        size, count = (request.width, request.height), request.num_outputs
        mask = request.mask.resize(size, Image.Resampling.BILINEAR) if request.mask else None
        return DenoiseRequest(
            prompts=(request.prompt,) * count,
            seeds=request.seeds,
            width=request.width,
            height=request.height,
            steps=request.num_inference_steps,
            guidance=request.guidance_scale,
            images=(image,) * count if image else (),
            masks=(mask,) * count if mask else (),
            strength=request.prompt_strength,
            sampler=request.sampler,
            schedule=request.scheduler,
            go_fast=request.go_fast,
            negative=request.negative_prompt,
            references=(request.references,) * count if request.references else (),
            controls=(request.control_image,) * count if request.control_image else (),
        )

    def parameters(self, request: ImageRequest, sampler_used: str) -> dict[str, object]:
        """What the files say beside the request's own fields."""
        parameters: dict[str, object] = {}
        if self.service.profile.inputs.negative_prompt:  # classifier-free guidance, which the WebUI calls CFG scale
            parameters |= {
                "CFG scale": request.guidance_scale,
                "Distilled CFG Scale": None,
                "Negative prompt": request.negative_prompt or None,
            }
        if sampler_used != request.sampler:
            parameters["Sampler"] = sampler_used
            parameters["_sampler"] = (
                f"{request.sampler} starts from pure noise only, so {sampler_used} redrew the image"
            )
        return parameters
