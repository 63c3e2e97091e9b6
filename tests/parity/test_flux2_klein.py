"""FLUX.2 klein draws what diffusers draws with the same weights, here small random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, Flux2KleinInpaintPipeline, Flux2KleinPipeline
from PIL import Image
from support.flux_pictures import picture, pixels
from support.model_pictures import found_model, service_of
from support.small_flux2 import write_klein

from backend.core.timeline import Timeline
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor

PROMPTS = ("a red fox", "<|im_start|> an old woman with a hat, smiling; 老", "x", "a very long story " * 60)
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether it is distilled."""
    folder = tmp_path_factory.mktemp("klein")
    return {distilled: write_klein(folder / str(distilled), distilled) for distilled in (True, False)}


@pytest.fixture(scope="module", params=[True, False], ids=["distilled", "base"])
def both(request: pytest.FixtureRequest, folders: dict[bool, Path]) -> tuple[DiffusionService, Flux2KleinPipeline]:
    """Ours and diffusers' of the same model."""
    folder = folders[request.param]
    theirs = Flux2KleinPipeline.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    theirs.set_progress_bar_config(disable=True)
    return service_of(found_model(folder)), theirs


def asked(**changes: Any) -> DenoiseRequest:
    values = {"prompts": PROMPTS[:1], "seeds": (3,), "width": WIDTH, "height": HEIGHT, "steps": 3, "guidance": 4.0}
    return DenoiseRequest(**{**values, **changes})


def drawn(service: DiffusionService, **changes: Any) -> list[np.ndarray]:
    return [pixels(image) for image in service.generate(asked(**changes), Monitor(Timeline()))]


def peer(pipeline: Any, prompts: tuple[str, ...] = PROMPTS[:1], **changes: Any) -> list[np.ndarray]:
    generators = [torch.Generator("cpu").manual_seed(3 + index) for index in range(len(prompts))]
    values = {"width": WIDTH, "height": HEIGHT, "num_inference_steps": 3, "guidance_scale": 4.0}
    images = pipeline(prompt=list(prompts), generator=generators, **{**values, **changes}).images
    return [pixels(image) for image in images]


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.std() > 5 and np.abs(one - other).max() <= 1


def test_four_different_prompts_give_the_pictures_of_diffusers(both: Any) -> None:
    service, pipeline = both
    assert_same(drawn(service, prompts=PROMPTS, seeds=(3, 4, 5, 6)), peer(pipeline, PROMPTS))


def test_a_second_sampler_gives_the_pictures_of_diffusers(both: Any) -> None:
    service, pipeline = both
    solver = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
    )
    own, pipeline.scheduler = pipeline.scheduler, solver
    theirs = peer(pipeline)
    pipeline.scheduler = own
    assert_same(drawn(service, sampler="DPM++ 2M"), theirs)


class WithoutReference(Flux2KleinInpaintPipeline):
    """Image-to-image as this class has it, but for the picture beside."""

    def prepare_image_latents(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        latents, places = super().prepare_image_latents(*args, **kwargs)
        return latents[:, :0], places[:, :0]


def masks() -> Image.Image:
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (16, 16, 64, 48))
    return mask


def test_image_to_image_is_inpainting_of_all_of_the_picture_without_a_reference(both: Any) -> None:
    service, pipeline = both
    image = picture().crop((20, 20, 20 + WIDTH, 20 + HEIGHT))
    ours = drawn(service, steps=5, images=(image,), strength=0.6)
    everything = Image.new("L", image.size, 255)
    inpaint = WithoutReference(**pipeline.components, is_distilled=pipeline.config.is_distilled)
    inpaint.set_progress_bar_config(disable=True)
    assert_same(ours, peer(inpaint, image=image, mask_image=everything, strength=0.6, num_inference_steps=5))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_gives_the_pictures_of_diffusers(both: Any, strength: float) -> None:
    service, pipeline = both
    image = picture().crop((20, 20, 20 + WIDTH, 20 + HEIGHT))
    both_of_them = {"prompts": PROMPTS[:2], "seeds": (3, 4), "images": (image,) * 2, "masks": (masks(),) * 2}
    ours = drawn(service, steps=5, strength=strength, **both_of_them)
    inpaint = Flux2KleinInpaintPipeline(**pipeline.components, is_distilled=pipeline.config.is_distilled)
    inpaint.set_progress_bar_config(disable=True)
    theirs = peer(inpaint, PROMPTS[:2], image=image, mask_image=masks(), strength=strength, num_inference_steps=5)
    assert_same(ours, theirs)


def test_references_give_the_pictures_of_diffusers(both: Any) -> None:
    """Of two sizes, neither of which is on the grid."""
    service, pipeline = both
    shown = (picture().crop((0, 0, 70, 90)), picture().crop((100, 30, 196, 97)))
    ours = drawn(service, prompts=PROMPTS[:2], seeds=(3, 4), references=(shown,) * 2)
    assert_same(ours, peer(pipeline, PROMPTS[:2], image=list(shown)))
    without = drawn(service, prompts=PROMPTS[:2], seeds=(3, 4))
    assert not np.array_equal(ours[0], without[0])


def test_inpainting_with_a_reference_gives_the_pictures_of_diffusers(both: Any) -> None:
    service, pipeline = both
    image, shown = picture().crop((20, 20, 20 + WIDTH, 20 + HEIGHT)), picture().crop((0, 0, 64, 96))
    ours = drawn(service, steps=5, strength=0.6, images=(image,), masks=(masks(),), references=((shown,),))
    inpaint = Flux2KleinInpaintPipeline(**pipeline.components, is_distilled=pipeline.config.is_distilled)
    inpaint.set_progress_bar_config(disable=True)
    theirs = peer(inpaint, image=image, mask_image=masks(), image_reference=shown, strength=0.6, num_inference_steps=5)
    assert_same(ours, theirs)
