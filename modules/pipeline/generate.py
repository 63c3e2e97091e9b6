"""The first stage: pictures from words, from a picture and words, or words painted into a mask."""

from __future__ import annotations

from PIL import Image

from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.pipeline.base import ImageBatch, Picture
from modules.request.image_request import ImageRequest


class GenerateStage:
    """Draws ``num_outputs`` pictures of the request's size; picture i has the seed of the request plus i."""

    name = "generate"

    def __init__(self, service: DiffusionService) -> None:
        self.service = service

    def wanted(self, request: ImageRequest) -> bool:
        return True

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        size = (request.width, request.height)
        count = request.num_outputs
        image = request.image.convert("RGB").resize(size, Image.Resampling.LANCZOS) if request.image else None
        mask = request.mask.convert("L").resize(size, Image.Resampling.BILINEAR) if request.mask else None
        denoise_request = DenoiseRequest(
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
        )
        drawn = self.service.generate(
            denoise_request, batch.timeline, lambda done, total: batch.progress(self.name, done, total)
        )
        if image and request.mask:
            soft = inpaint_mask(request.mask, size)
            drawn = [Image.composite(new, image, soft) for new in drawn]
        parameters: dict[str, object] = {}
        if self.service.family.negative_prompts:  # its guidance is the classic one
            parameters |= {
                "CFG scale": request.guidance_scale,
                "Distilled CFG Scale": None,
                "Negative prompt": request.negative_prompt or None,
            }
        if denoise_request.sampler_used != request.sampler:
            parameters["Sampler"] = denoise_request.sampler_used
            parameters["_sampler"] = (
                f"{request.sampler} begins from pure noise only, so {denoise_request.sampler_used} redrew the image"
            )
        return batch.with_pictures(
            Picture(new, seed, parameters) for new, seed in zip(drawn, request.seeds, strict=True)
        )
