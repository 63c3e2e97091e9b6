"""The first stage: text to image, image to image, or inpainting."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Self

from PIL import Image

from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.inpaint_mask import inpaint_mask
from modules.inpainting.crops import composite
from modules.inpainting.input_mask import masked_region
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
        "output_megapixels",
        "num_inference_steps",
        "guidance_scale",
        "guidance",
        "sampler",
        "scheduler",
        "go_fast",
        "image",
        "mask",
        "prompt_strength",
        "inpaint_only_masked",
        "inpaint_only_masked_padding",
        "outpaint",
        "input_image",
        "images",
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
        if request.image and request.keeps_image:
            return self._on_image(batch, request, request.image)
        size = (request.width, request.height)
        image = request.image.resize(size, Image.Resampling.LANCZOS) if request.image else None
        mask = request.mask.resize(size, Image.Resampling.BILINEAR) if request.mask else None
        denoise_request = self.denoise_request(batch, request, size, image, mask, request.control_image)
        images = self.service.generate(denoise_request, batch.monitor(self.name))
        if image and request.mask:
            grown = inpaint_mask(request.mask, size)
            images = [Image.composite(new, image, grown) for new in images]
        return self._pictures(batch, request, images, self.parameters(request, denoise_request.sampler_used))

    def _on_image(self, batch: ImageBatch, request: ImageRequest, image: Image.Image) -> ImageBatch:
        """The image itself, with the masked part drawn where there is one."""
        if request.prompt_strength == 0:
            # the detail pass reads the other parameters too
            parameters = {**self.parameters(request, request.sampler), "Size": f"{image.width}x{image.height}"}
            return self._pictures(batch, request, [image] * request.num_outputs, parameters)
        drawn, pasted = masked_region(request, image, self.service.profile.canvas)
        control = request.control_image and drawn.crop(request.control_image.resize(image.size))
        denoise_request = self.denoise_request(
            batch, request, drawn.size, drawn.crop(image), drawn.crop_mask(), control
        )
        crops = self.service.generate(denoise_request, batch.monitor(self.name))
        parameters = {
            **self.parameters(request, denoise_request.sampler_used),
            "Size": f"{drawn.size[0]}x{drawn.size[1]}",
            "Inpaint area": "Only masked",
            "Masked area padding": request.inpaint_only_masked_padding,
            "Outpaint": request.outpaint or None,
        }
        images = [composite(image, crop, pasted.box, pasted.mask) for crop in crops]
        return self._pictures(batch, request, images, parameters)

    @staticmethod
    def _pictures(
        batch: ImageBatch, request: ImageRequest, images: list[Image.Image], parameters: dict[str, object]
    ) -> ImageBatch:
        original = request.original if request.keeps_image else None
        return batch.with_pictures(
            Picture(image, seed, parameters, original) for image, seed in zip(images, request.seeds, strict=True)
        )

    def denoise_request(
        self,
        batch: ImageBatch,
        request: ImageRequest,
        size: tuple[int, int],
        image: Image.Image | None,
        mask: Image.Image | None,
        control: Image.Image | None,
    ) -> DenoiseRequest:
        """What the diffusion service is asked for; ``image``, if any, and ``mask`` have this size."""
        count = request.num_outputs
        return DenoiseRequest(
            prompts=(request.prompt,) * count,
            seeds=request.seeds,
            width=size[0],
            height=size[1],
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
            controls=(control,) * count if control else (),
            loras=batch.lora_files(request.loras),
        )

    def parameters(self, request: ImageRequest, sampler_used: str) -> dict[str, object]:
        """What the files say beside the request's own fields."""
        parameters: dict[str, object] = {}
        if self.service.profile.inputs.guidance is None:
            parameters["Distilled CFG Scale"] = None
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
