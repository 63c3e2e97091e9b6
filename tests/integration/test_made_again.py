"""The files of this package say enough to make the same pixels again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pictures import PROMPT

from modules.app.service import Service
from modules.cli.given_inputs import PictureSource
from modules.output.image_writer import read_parameters
from modules.pipeline.base import no_progress

SMALL: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 2, "megapixels": "0.25", "scale": 1.0, "seed": 11}
REQUESTS: dict[str, dict[str, Any]] = {
    "png": {"output_format": "png"},
    "webp without a seed": {"seed": None, "output_format": "webp", "output_quality": 70},
    "jpg": {"output_format": "jpg", "guidance_scale": 2.5},
    "wide": {"aspect_ratio": "21:9"},
    "of its own size": {"aspect_ratio": "custom", "width": 256, "height": 320, "adetailer": False},
    "schedule": {"scheduler": "Karras", "num_inference_steps": 3},
    "sampler": {"sampler": "DPM++ 2M", "num_inference_steps": 3},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos", "denoising_strength": 0.5, "hr_steps": 3},
    "units": {
        "ad_prompt": "a smile",
        "adetailer_args": '[{"ad_confidence": 0.2, "ad_mask_blur": 8}, {"ad_use_steps": true, "ad_steps": 3}]',
    },
    "upscaled, rewritten prompt": {"scale": 2.0, "prompt_upsampling": True, "prompt_upsampling_seed": 3},
}


def predicted(service: Service, inputs: dict[str, Any], folder: Path) -> Path:
    (file,) = service.predict(inputs, lambda name, value: None, no_progress)
    return Path(file.rename(folder / file.name))


@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS)
def test_a_file_gives_its_pixels_again(service: Service, tmp_path: Path, changes: dict[str, Any]) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first = predicted(service, {**SMALL, **changes}, folders[0])
    inputs, notices = PictureSource(first, service.schema).inputs({}, service)
    second = predicted(service, inputs, folders[1])
    assert notices == [] and first.suffix == second.suffix
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


def test_a_picture_of_several_is_made_with_the_others_and_kept_alone(service: Service, tmp_path: Path) -> None:
    several = {**SMALL, "num_outputs": 3, "adetailer": False}
    pictures = service.predict(several, lambda name, value: None, no_progress)
    second = Path(pictures[1].rename(tmp_path / pictures[1].name))
    source = PictureSource(second, service.schema)
    inputs, notices = source.inputs({}, service)
    pictures = service.predict(inputs, lambda name, value: None, no_progress)
    (again,) = (file for file in pictures if read_parameters(file)[1]["seed"] == SMALL["seed"] + 1)
    assert notices == [] and source.kept({}) == (1, SMALL["seed"] + 1)
    assert np.array_equal(np.asarray(Image.open(second)), np.asarray(Image.open(again)))


def test_with_a_seed_of_its_own_a_picture_of_several_is_one(service: Service, tmp_path: Path) -> None:
    several = {**SMALL, "num_outputs": 2, "adetailer": False, "num_inference_steps": 1}
    pictures = service.predict(several, lambda name, value: None, no_progress)
    source = PictureSource(pictures[1], service.schema)
    for given, seed, number in (({"seed": 7}, 7, 1), ({"num_outputs": 2}, SMALL["seed"] + 1, 2)):
        inputs, _ = source.inputs(given, service)
        assert (inputs["seed"], inputs["num_outputs"], source.kept(given)) == (seed, number, None)


def test_a_picture_that_began_from_another_one_says_so(service: Service, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "start.png")
    first = predicted(service, {**SMALL, "image": tmp_path / "start.png", "adetailer": False}, tmp_path)
    source = PictureSource(first, service.schema)
    assert source.inputs({}, service)[1] == [
        "image: the picture was made from another one, which is not in the file; give it as image=@FILE"
    ]
    inputs, notices = source.inputs({"image": tmp_path / "start.png"}, service)
    again = tmp_path / "again"
    again.mkdir()
    second = predicted(service, inputs, again)
    assert notices == []
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))
