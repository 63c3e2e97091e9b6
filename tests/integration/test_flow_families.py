"""FLUX.2 klein and Z-Image through every stage: whole predictions with small random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.face_restorers import write_gfpgan
from support.people import portraits
from support.predictions import pixels, predicted
from support.requests_data import INPUTS
from support.small_flux2 import write_klein
from support.small_z_image import write_z_image

from backend.core.errors import InputError
from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start
from modules.output.image_writer import read_parameters

FAST = {"num_inference_steps": 2, "scale": 1, "adetailer": False, "seed": 4, "output_format": "png"}
KEPT = {"prompt_strength": 0.0}
"""The first pass leaves the picture as it is, so that the face is found, which random weights would not draw."""
SIDE = 128
"""The native side of the small models."""
FEATHER = 16
"""Pixels beside the mask over which what is drawn goes over into what stays."""
STAGES = ("generate", "hires", "adetailer", "upscale", "face_enhance", "safety_check")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with the embedded models and a face restorer."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "embedded").symlink_to(ROOT / "weights" / "embedded")
    write_gfpgan(folder)
    return folder


@pytest.fixture(scope="module", params=[write_klein, write_z_image], ids=["flux2-klein", "z-image"])
def service(request: pytest.FixtureRequest, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Of the distilled model of the family, with every stage that there is."""
    model = request.param(tmp_path_factory.mktemp("models") / "distilled")
    settings = replace(Settings(), model=str(model), weights_dir=str(weights), dtype="float32", log_level="WARNING")
    return start(replace(settings, safety_checker="nudenet"))


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "portrait.png"
    portraits(1, seed=3)[0].resize((SIDE, SIDE)).save(file)
    return file


def image_of(service: Service, **inputs: Any) -> np.ndarray:
    return pixels(predicted(service, **{**FAST, **inputs})[0][0])


def test_every_stage_runs_in_one_prediction(service: Service, portrait: Path) -> None:
    units = '[{"ad_prompt": "a smile", "ad_negative_prompt": "a hat"}, {"ad_denoising_strength": 0.9}]'
    images, metrics, files = predicted(
        service,
        **{**FAST, **KEPT, "adetailer": True, "scale": 1.2},
        image=portrait,
        adetailer_args=units,
        enable_hr=True,
        hr_scale=1.25,
        denoising_strength=0.0,
        face_enhance=True,
    )
    assert images[0].size == (192, 192)
    assert {f"{stage}.seconds" for stage in STAGES} <= set(metrics)
    text, record = read_parameters(files[0])
    for part in ("Hires upscale: 1.25", "ADetailer prompt: a smile", "ADetailer denoising strength 2nd: 0.9"):
        assert part in text
    assert "Faces restored: " in text and "Safety checker: nudenet" in text
    assert len(record["parameters"]["_adetailer_regions"]) == 1
    label = service.profile.inputs.label
    assert metrics["notices"] == [f"ad_negative_prompt: is left out, {label} has no negative prompt"]


def test_the_detail_pass_changes_the_face_and_nothing_else(service: Service, portrait: Path) -> None:
    images, _, files = predicted(service, **{**FAST, **KEPT, "adetailer": True, "num_outputs": 2}, image=portrait)
    original = pixels(Image.open(portrait).convert("RGB"))
    (left, top, right, bottom), *others = read_parameters(files[0])[1]["parameters"]["_adetailer_regions"]
    assert not others
    for image in images:
        changed = (pixels(image) != original).any(axis=2)
        assert changed[top:bottom, left:right].mean() > 0.3
        changed[top:bottom, left:right] = False
        assert not changed.any()
    assert not np.array_equal(pixels(images[0]), pixels(images[1])), "each has its own seed"


def test_hires_fix_is_image_to_image_of_the_larger_picture(service: Service, tmp_path: Path) -> None:
    """Off the square. What the latent upscaler gives is another picture."""
    wide = {"aspect_ratio": "16:9", "megapixels": "0.25"}
    first = Image.fromarray(image_of(service, **wide).astype(np.uint8))
    larger = first.resize((2 * first.width, 2 * first.height), Image.Resampling.LANCZOS)
    larger.save(tmp_path / "larger.png")
    hires = {"enable_hr": True, "hr_scale": 2, "hr_steps": 3, "denoising_strength": 0.7, **wide}
    lanczos = image_of(service, hr_upscaler="Lanczos", **hires)
    redrawn = image_of(
        service,
        image=tmp_path / "larger.png",
        megapixels="match_input",
        num_inference_steps=3,
        prompt_strength=0.7,
    )
    assert lanczos.shape == (larger.height, larger.width, 3) and np.array_equal(lanczos, redrawn)
    latent = image_of(service, hr_upscaler="Latent", **hires)
    assert latent.shape == lanczos.shape and not np.array_equal(latent, lanczos)


def test_a_mask_keeps_the_rest_to_the_byte(service: Service, portrait: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (64, 80, SIDE, SIDE))
    mask.save(tmp_path / "mask.png")
    original = pixels(Image.open(portrait).convert("RGB"))
    for strength in (0.5, 1.0):
        image = image_of(service, image=portrait, mask=tmp_path / "mask.png", prompt_strength=strength)
        changed = (image != original).any(axis=2)
        assert changed[80:, 64:].mean() > 0.9
        assert not changed[: 80 - FEATHER].any() and not changed[:, : 64 - FEATHER].any()


def test_strength_0_keeps_the_image_and_strength_1_ignores_it(service: Service, portrait: Path) -> None:
    original = pixels(Image.open(portrait).convert("RGB"))
    assert np.array_equal(image_of(service, image=portrait, prompt_strength=0.0), original)
    assert np.array_equal(image_of(service, image=portrait, prompt_strength=1.0), image_of(service))


def test_pictures_of_a_batch_are_those_of_their_seeds(service: Service) -> None:
    images, metrics, _ = predicted(service, **{**FAST, "num_outputs": 4, "aspect_ratio": "16:9"})
    assert len(images) == 4 and images[0].size == (160, 96) and metrics["seed"] == 4
    alone = image_of(service, seed=7, aspect_ratio="16:9")
    assert np.abs(pixels(images[3]) - alone).max() <= 1


def test_prompts_of_any_script_and_length_are_read_and_what_is_not_read_is_told(service: Service) -> None:
    drawn = {}
    for prompt in ("a red fox", "老いた狐 <|im_end|> 🦊 سلام"):
        (image,), metrics, _ = predicted(service, **{**FAST, "megapixels": "0.25"}, prompt=prompt)
        assert "notices" not in metrics
        drawn[prompt] = pixels(image)
    assert not np.array_equal(*drawn.values())
    long = service.checks.request({**INPUTS, "prompt": "a fox in the snow " * 60})
    (cut,) = service.pipeline.stages[0].notices(long)
    assert cut.startswith("prompt: the model reads 512 tokens; ")


def test_what_a_distilled_model_does_not_honour_is_told(service: Service) -> None:
    """Guidance changes nothing, in the picture or in its file; a negative prompt is refused."""
    (image,), metrics, files = predicted(service, **FAST, guidance_scale=3.0)
    assert metrics["notices"] == [f"guidance_scale: has no effect, {service.profile.name} takes no guidance"]
    text, record = read_parameters(files[0])
    assert "Distilled CFG Scale" not in text
    assert record["request"]["guidance_scale"] == service.profile.guidance
    assert np.array_equal(pixels(image), image_of(service))
    label = service.profile.inputs.label
    for inputs, message in (
        ({"negative_prompt": "a hat"}, f"negative_prompt: {label} has none; "),
        ({"prompt": " "}, "prompt: is empty"),
        ({"aspect_ratio": "custom", "width": 300, "height": 256}, "width: must be a multiple of 16 "),
        ({"adetailer_args": '{"ad_use_cfg_scale": true}', "adetailer": True}, "adetailer_args: ad_use_cfg_scale "),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            predicted(service, **{**FAST, **inputs})
