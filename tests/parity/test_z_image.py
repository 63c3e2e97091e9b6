"""Z-Image draws what diffusers draws with the same weights, here small random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline, ZImagePipeline
from PIL import Image
from support.flux_pictures import picture, pixels
from support.model_pictures import found_model, service_of
from support.small_z_image import write_z_image

from backend.core.timeline import Timeline
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor

PROMPTS = ("a red fox", "<|im_start|> an old woman with a hat, smiling; 老", "x", "a very long story " * 60)
"""Of four lengths; the last is cut off."""
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module", params=[True, False], ids=["turbo", "base"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DiffusionService, ZImagePipeline]:
    """Ours and diffusers' of the same model."""
    folder: Path = write_z_image(tmp_path_factory.mktemp("z-image"), request.param)
    theirs = ZImagePipeline.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    theirs.set_progress_bar_config(disable=True)
    return service_of(found_model(folder)), theirs


def drawn(service: DiffusionService, **changes: Any) -> list[np.ndarray]:
    values = {"prompts": PROMPTS[:1], "seeds": (3,), "width": WIDTH, "height": HEIGHT, "steps": 3, "guidance": 4.0}
    request = DenoiseRequest(**{**values, **changes})
    return [pixels(image) for image in service.generate(request, Monitor(Timeline()))]


def peer(service: DiffusionService, pipeline: Any, prompts: tuple[str, ...] = PROMPTS[:1], **changes: Any) -> Any:
    generators = [torch.Generator("cpu").manual_seed(3 + index) for index in range(len(prompts))]
    guidance = 4.0 if service.profile.inputs.guidance else 0.0
    values = {"width": WIDTH, "height": HEIGHT, "num_inference_steps": 3, "guidance_scale": guidance}
    images = pipeline(prompt=list(prompts), generator=generators, **{**values, **changes}).images
    return [pixels(image) for image in images]


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.std() > 5 and np.abs(one - other).max() <= 1


def test_four_prompts_of_different_lengths_give_the_pictures_of_diffusers(both: Any) -> None:
    service, pipeline = both
    assert_same(drawn(service, prompts=PROMPTS, seeds=(3, 4, 5, 6)), peer(service, pipeline, PROMPTS))


def test_a_negative_prompt_gives_the_picture_of_diffusers(both: Any) -> None:
    """Where the model has one, also at guidance scales at which other families read none."""
    service, pipeline = both
    if service.profile.inputs.negative_prompt:
        ours = drawn(service, negative="a hat", guidance=0.8)
        assert_same(ours, peer(service, pipeline, negative_prompt=["a hat"], guidance_scale=0.8))
    else:
        assert_same(drawn(service, guidance=0.8), peer(service, pipeline))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_image_to_image_gives_the_pictures_of_diffusers(both: Any, strength: float) -> None:
    service, pipeline = both
    image = picture().crop((20, 20, 20 + WIDTH, 20 + HEIGHT))
    two = {"prompts": PROMPTS[:2], "seeds": (3, 4)}
    ours = drawn(service, steps=5, images=(image,) * 2, strength=strength, **two)
    given = {"image": service.encode_images([image]), "strength": strength, "num_inference_steps": 5}
    assert_same(ours, peer(service, ZImageImg2ImgPipeline(**pipeline.components), PROMPTS[:2], **given))


def test_inpainting_gives_the_pictures_of_diffusers(both: Any) -> None:
    service, pipeline = both
    image = picture().crop((20, 20, 20 + WIDTH, 20 + HEIGHT))
    mask = Image.new("L", image.size)
    mask.paste(255, (16, 16, 64, 48))
    two = {"prompts": PROMPTS[:2], "seeds": (3, 4)}
    ours = drawn(service, steps=5, images=(image,) * 2, masks=(mask,) * 2, strength=0.6, **two)
    given = {"image": image, "mask_image": mask, "strength": 0.6, "num_inference_steps": 5}
    inpaint = Deterministic(**pipeline.components)
    inpaint.latents = service.encode_images([image])
    assert_same(ours, peer(service, inpaint, PROMPTS[:2], **given))


class Deterministic(ZImageInpaintPipeline):
    """Takes the mean of the latents in place of a sample, which would take numbers from the generator."""

    latents: torch.Tensor

    def prepare_latents(self, image: Any, *args: Any) -> Any:
        return super().prepare_latents(self.latents, *args)
