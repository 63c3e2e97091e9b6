"""FLUX.1 Fill, Kontext and Depth through every stage: whole predictions with small random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.people import portraits
from support.predictions import pixels, predicted
from support.small_flux import write_small_flux

from backend.core.errors import InputError
from backend.core.settings import Settings
from modules.app.service import Service, start
from modules.output.image_writer import read_parameters
from modules.request.from_record import inputs_of_record

UNMASKED = 16
"""Pixels beside the mask over which what is painted goes over into what stays."""
FAST = {"num_inference_steps": 2, "scale": 1, "seed": 4, "output_format": "png"}
KEPT = {"prompt_strength": 0.0}
"""The first pass leaves the picture as it is, so that the face is found, which random weights would not draw."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Service]:
    @cache
    def made(variant: str) -> Service:
        folder = write_small_flux(tmp_path_factory.mktemp("models") / variant, variant)
        settings = replace(Settings(), model=str(folder), safety_checker="", log_level="WARNING")
        return start(settings)

    return made


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "portrait.png"
    portraits(1, seed=3)[0].resize((256, 256)).save(file)
    return file


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask of the lower right corner."""
    file = tmp_path_factory.mktemp("masks") / "corner.png"
    mask = Image.new("L", (256, 256))
    mask.paste(255, (200, 200, 256, 256))
    mask.save(file)
    return file


def changed(image: Image.Image, portrait: Path) -> np.ndarray:
    return np.asarray((pixels(image) != pixels(Image.open(portrait).resize(image.size))).any(axis=2))


def test_fill_paints_the_mask_and_keeps_the_rest_to_the_byte(services: Any, portrait: Path, corner: Path) -> None:
    images, _, files = predicted(services("fill"), image=portrait, mask=corner, adetailer=False, num_outputs=2, **FAST)
    for image in images:
        differs = changed(image, portrait)
        assert differs[210:, 210:].mean() > 0.9
        assert not differs[: 200 - UNMASKED].any() and not differs[:, : 200 - UNMASKED].any()
    text, _ = read_parameters(files[0])
    assert "Distilled CFG Scale: 30," in text and "Denoising strength: 1," in text


def test_a_larger_canvas_with_a_mask_is_outpainting(services: Any, portrait: Path, tmp_path: Path) -> None:
    canvas = Image.new("RGBA", (384, 256))
    canvas.paste(Image.open(portrait).convert("RGBA"), (64, 0))
    canvas.save(tmp_path / "canvas.png")
    (image,), _, _ = predicted(
        services("fill"), image=tmp_path / "canvas.png", megapixels="match_input", adetailer=False, **FAST
    )
    assert image.size == (384, 256)
    inner = pixels(image)[:, 64 + UNMASKED : 320 - UNMASKED]
    assert np.array_equal(inner, pixels(Image.open(portrait))[:, UNMASKED : 256 - UNMASKED])
    assert pixels(image)[:, :48].std() > 0, "the sides are painted"


def test_fill_repaints_faces(services: Any, portrait: Path, tmp_path: Path) -> None:
    """It gets the crop and the mask of the face."""
    mask = tmp_path / "mask.png"
    Image.new("L", (256, 256), 255).save(mask)
    given = {**FAST, **KEPT, "image": portrait, "mask": mask}
    faces, metrics, files = predicted(services("fill"), **given)
    _, record = read_parameters(files[0])
    plain, _, _ = predicted(services("fill"), adetailer=False, **given)
    assert len(record["parameters"]["_adetailer_regions"]) == 1 and "adetailer.denoise.seconds" in metrics
    assert not np.array_equal(pixels(faces[0]), pixels(plain[0]))


def test_kontext_edits_a_picture_at_the_nearest_of_its_sizes(services: Any, portrait: Path) -> None:
    (image,), metrics, files = predicted(services("kontext"), input_image=portrait, adetailer=False, **FAST)
    assert image.size == (256, 256) and "generate.encode_image.seconds" in metrics
    _, record = read_parameters(files[0])
    (wide,), _, _ = predicted(services("kontext"), input_image=portrait, aspect_ratio="16:9", adetailer=False, **FAST)
    assert wide.size == (336, 192)  # of 1328 x 800, a quarter of the side, on the grid
    again = inputs_of_record(record, services("kontext").schema.properties)
    assert again.inputs["aspect_ratio"] == "match_input_image" and "input_image" not in again.inputs
    assert any(notice.startswith("input_image: the picture was made from another one") for notice in again.notices)


def test_kontext_repaints_faces(services: Any, portrait: Path) -> None:
    """It looks at the crop that it repaints."""
    given = {**FAST, **KEPT, "input_image": portrait, "image": portrait}
    images, _, files = predicted(services("kontext"), **given)
    _, record = read_parameters(files[0])
    assert len(record["parameters"]["_adetailer_regions"]) == 1
    assert not np.array_equal(pixels(images[0]), pixels(Image.open(portrait)))


@pytest.mark.parametrize(("variant", "upscaler"), [("fill", "Latent"), ("kontext", "Lanczos"), ("depth", "Lanczos")])
def test_a_second_pass_reads_the_pictures_again(
    services: Any, portrait: Path, corner: Path, variant: str, upscaler: str
) -> None:
    given = {
        "fill": {"image": portrait, "mask": corner},
        "kontext": {"input_image": portrait},
        "depth": {"control_image": portrait},
    }[variant]
    (image,), metrics, _ = predicted(
        services(variant), enable_hr=True, hr_scale=1.25, hr_upscaler=upscaler, adetailer=False, **FAST, **given
    )
    assert image.size == (320, 320) and {"hires.encode_image.seconds", "hires.denoise.seconds"} <= set(metrics)


def test_depth_follows_its_control_image_in_faces_too(services: Any, portrait: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "depth.png")
    given = {**FAST, **KEPT, "image": portrait}
    (one,), _, files = predicted(services("depth"), control_image=portrait, **given)
    assert len(read_parameters(files[0])[1]["parameters"]["_adetailer_regions"]) == 1
    (other,), _, _ = predicted(services("depth"), control_image=tmp_path / "depth.png", **given)
    assert not np.array_equal(pixels(one), pixels(other))


def test_the_request_after_a_refused_one_is_the_same_as_ever(services: Any, portrait: Path, corner: Path) -> None:
    given = {"image": portrait, "mask": corner, "adetailer": False, **FAST}
    before = predicted(services("fill"), **given)[0][0]
    with pytest.raises(InputError, match="^mask: is needed by FLUX.1 Fill"):
        predicted(services("fill"), image=portrait)
    assert np.array_equal(pixels(before), pixels(predicted(services("fill"), **given)[0][0]))
