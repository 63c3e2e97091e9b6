"""Hires fix on the real embedded models: a larger picture of the same scene, drawn over before the detail pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from support.pictures import PROMPT
from support.predictions import pixels, predicted
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

from backend.core.errors import InputError
from backend.core.timeline import Timeline
from backend.offload.oom_fallback import OomFallback
from modules.app.service import Service
from modules.output.image_writer import read_parameters
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.pipeline.hires import LATENT_MODES, HiresStage
from modules.request.image_request import Hires, ImageRequest
from modules.request.parser import build_request
from modules.upscaling.service import UpscaleService
from training.data.drawing import draw_scene
from training.data.scene import sample_scene

REQUEST = ImageRequest(prompt=PROMPT, width=256, height=256, seed=1, num_inference_steps=4, hires=Hires())


@pytest.fixture
def stage(service: Service) -> HiresStage:
    return next(stage for stage in service.pipeline.stages if isinstance(stage, HiresStage))


@pytest.fixture(scope="module")
def drawn() -> ImageBatch:
    rng = random.Random(5)
    return ImageBatch(
        tuple(Picture(draw_scene(sample_scene(rng, (128, 96))), seed) for seed in (1, 2)), Timeline(), no_progress
    )


@pytest.fixture(scope="module")
def one(drawn: ImageBatch) -> ImageBatch:
    """The first of them."""
    return drawn.with_pictures(drawn.pictures[:1])


@pytest.fixture(scope="module")
def redrawn(service: Service, one: ImageBatch) -> Callable[[Hires], Picture]:
    """What a second pass makes of it, once for all tests."""
    stage = next(stage for stage in service.pipeline.stages if isinstance(stage, HiresStage))
    return cache(lambda hires: stage.run(one, replace(REQUEST, hires=hires)).pictures[0])


def test_it_is_off_unless_asked_for(service: Service) -> None:
    images, metrics, _ = predicted(service, scale=1, adetailer=False)
    assert images[0].size == (256, 256) and "hires.seconds" not in metrics


def test_a_prediction_is_larger_by_its_factor_and_says_so(service: Service) -> None:
    images, metrics, files = predicted(
        service, enable_hr=True, hr_scale=1.3, hr_steps=3, denoising_strength=0.5, scale=1.5
    )
    assert images[0].size == (480, 480), "256 x 1.3 is nearest to 320 on the grid, times 1.5"
    assert {"hires.seconds", "hires.upscale.seconds", "hires.denoise.seconds"} <= set(metrics)
    order = [
        name
        for name in metrics
        if name in ("generate.seconds", "hires.seconds", "adetailer.seconds", "upscale.seconds")
    ]
    assert order == ["generate.seconds", "hires.seconds", "adetailer.seconds", "upscale.seconds"]
    text, record = read_parameters(files[0])
    for part in (
        "Denoising strength: 0.5",
        "Hires upscale: 1.3",
        "Hires steps: 3",
        "Hires upscaler: upscaler",
        "Size: 256x256",
    ):
        assert part in text
    own = {"scale": 1.3, "steps": 3, "upscaler": "ESRGAN", "strength": 0.5}
    assert record["request"]["hires"] == {**own, "prompt": "", "tiles": "auto"}


def test_every_picture_keeps_its_shape_and_scene(stage: HiresStage, drawn: ImageBatch) -> None:
    result = stage.run(drawn, REQUEST)
    for before, after in zip(drawn.pictures, result.pictures, strict=True):
        assert after.image.size == (160, 128)
        back = pixels(after.image.resize(before.image.size, Image.Resampling.LANCZOS))
        assert 0 < np.abs(back - pixels(before.image)).mean() < 25


def test_strength_decides_how_much_is_redrawn(
    stage: HiresStage, one: ImageBatch, redrawn: Callable[[Hires], Picture]
) -> None:
    kept, weak, strong = (redrawn(Hires(strength=strength)).image for strength in (0, 0.3, 0.9))
    upscaled = stage.upscaled(one.pictures[0].image, Hires())
    assert np.array_equal(pixels(kept), pixels(upscaled))
    assert np.abs(pixels(weak) - pixels(upscaled)).mean() < np.abs(pixels(strong) - pixels(upscaled)).mean()


def test_a_picture_of_a_batch_is_the_one_it_is_alone(stage: HiresStage, drawn: ImageBatch) -> None:
    together = stage.run(drawn, REQUEST).pictures[1].image
    alone = stage.run(drawn.with_pictures(drawn.pictures[1:]), REQUEST).pictures[0].image
    assert np.abs(pixels(together) - pixels(alone)).max() <= 1


def test_lanczos_needs_no_network(stage: HiresStage, one: ImageBatch) -> None:
    picture = one.pictures[0].image
    plain = stage.upscaled(picture, Hires(upscaler="Lanczos"))
    assert np.array_equal(pixels(plain), pixels(picture.resize((160, 128), Image.Resampling.LANCZOS)))
    assert not np.array_equal(pixels(plain), pixels(stage.upscaled(picture, Hires())))


@pytest.mark.parametrize("upscaler", LATENT_MODES)
def test_latents_can_be_upscaled_in_place_of_pixels(redrawn: Callable[[Hires], Picture], upscaler: str) -> None:
    result, plain = redrawn(Hires(strength=0.7, upscaler=upscaler)), redrawn(Hires(strength=0.7))
    assert result.image.size == plain.image.size and not np.array_equal(pixels(result.image), pixels(plain.image))
    assert result.parameters["Hires upscaler"] == upscaler


def test_the_input_upscaler_names_the_network_here_too(stage: HiresStage, one: ImageBatch) -> None:
    several = UpscaleService(
        stage.upscale_service.models, {"first": "a model that is not there", "second": "upscaler"}, 192, OomFallback()
    )
    result = HiresStage(stage.service, several).run(one, replace(REQUEST, upscaler="second"))
    assert {picture.parameters["Hires upscaler"] for picture in result.pictures} == {"second"}


@pytest.mark.parametrize("upscaler", ["ESRGAN", "Lanczos", *LATENT_MODES])
def test_it_upscales_also_where_nothing_is_redrawn(redrawn: Callable[[Hires], Picture], upscaler: str) -> None:
    assert redrawn(Hires(strength=0, upscaler=upscaler)).image.size == (160, 128)


@pytest.mark.parametrize("upscaler", ["ESRGAN", "Latent"])
def test_what_an_input_mask_keeps_is_upscaled_only(stage: HiresStage, one: ImageBatch, upscaler: str) -> None:
    mask = Image.new("L", (128, 96))
    mask.paste(255, (64, 0, 128, 96))
    before = one.pictures[0].image
    asked = replace(REQUEST, image=before, mask=mask, hires=Hires(strength=0.9, upscaler=upscaler))
    after = pixels(stage.run(one, asked).pictures[0].image)
    kept = (
        pixels(stage.upscaled(before, Hires()))
        if upscaler == "ESRGAN"
        else pixels(before.resize((160, 128), Image.Resampling.LANCZOS))
    )
    assert np.array_equal(after[:, :64], kept[:, :64]) and not np.array_equal(after[:, 96:], kept[:, 96:])


def test_the_whole_of_the_noise_is_never_asked_for(stage: HiresStage, one: ImageBatch) -> None:
    """As in the WebUI: of 4 steps the last 3 are run, so that something of the picture is left."""
    told: list[tuple[int, int]] = []
    stage.run(
        replace(one, progress=lambda name, done, total: told.append((done, total))),
        replace(REQUEST, hires=Hires(strength=1)),
    )
    assert told[-1] == (3, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hr_scale", 0.9), ("hr_steps", 51), ("denoising_strength", 1.1), ("hr_upscaler", "esrgan")],
)
def test_what_is_out_of_range_is_named(field: str, value: float | int | str) -> None:
    with pytest.raises(InputError, match=f"^{field}: must be"):
        build_request({**INPUTS, "enable_hr": True, field: value}, EMBEDDED, DETECTORS)
