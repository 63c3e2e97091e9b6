"""Pictures of people's own, finished at their own size by the embedded models: what is not drawn stays to the byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.image_files import DISPLAY_P3, profile
from support.people import couple
from support.predictions import predicted

from backend.core.errors import InputError
from modules.app.service import Service
from modules.output.image_writer import read_parameters
from modules.request.from_record import inputs_of_record

SIZE = (997, 663)
"""On no grid."""
FAST = {"num_inference_steps": 2, "scale": 1, "seed": 4}
FINISHED = {**FAST, "prompt_strength": 0.0}


def photograph() -> Image.Image:
    return couple().resize(SIZE, Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``photo.png``; ``phone.png``, which is transparent in a corner and has a colour profile; and ``mask.png``."""
    folder = tmp_path_factory.mktemp("pictures")
    photograph().save(folder / "photo.png")
    opacity = Image.new("L", SIZE, 255)
    opacity.paste(0, (0, 0, 90, 60))
    phone = photograph()
    phone.putalpha(opacity)
    phone.save(folder / "phone.png", icc_profile=profile(DISPLAY_P3, 2.2))
    mask = Image.new("L", SIZE)
    mask.paste(255, (300, 200, 420, 330))
    mask.save(folder / "mask.png")
    return folder


def changed(file: Path, before: Path) -> np.ndarray:
    """Where the pixels of two files differ: height x width."""
    with Image.open(file) as one, Image.open(before) as other:
        assert one.mode == other.mode and one.size == other.size
        assert one.info.get("icc_profile") == other.info.get("icc_profile")
        return np.asarray((np.asarray(one) != np.asarray(other)).any(axis=2))


def outside(differs: np.ndarray, boxes: list[list[int]]) -> np.ndarray:
    result = differs.copy()
    for left, top, right, bottom in boxes:
        result[top:bottom, left:right] = False
    return result


@pytest.mark.parametrize("name", ["photo.png", "phone.png"])
def test_a_finished_picture_is_the_file_but_for_its_faces(service: Service, folder: Path, name: str) -> None:
    _, metrics, files = predicted(service, image=folder / name, num_outputs=2, **FINISHED)
    assert "generate.denoise.seconds" not in metrics and "generate.encode_image.seconds" not in metrics
    for file in files:
        text, record = read_parameters(file)
        boxes, differs = record["parameters"]["_adetailer_regions"], changed(file, folder / name)
        assert len(boxes) == 2 and differs.any() and not outside(differs, boxes).any()
        assert "Size: 997x663," in text and "Denoising strength: 0," in text
    assert files[0].read_bytes() != files[1].read_bytes(), "the faces have seeds of their own"


def test_without_a_detail_pass_it_is_the_file(service: Service, folder: Path) -> None:
    _, _, files = predicted(service, image=folder / "phone.png", adetailer=False, **FINISHED)
    assert not changed(files[0], folder / "phone.png").any()


def test_the_upscaler_follows(service: Service, folder: Path) -> None:
    with Image.open(folder / "phone.png") as phone:
        phone.resize((99, 66)).save(folder / "small.png", icc_profile=phone.info["icc_profile"])
    given = {**FINISHED, "scale": 1.5, "adetailer": False}
    (image,), _, files = predicted(service, image=folder / "small.png", **given)
    assert image.size == (148, 99)
    with Image.open(files[0]) as upscaled:
        assert upscaled.mode == "RGBA" and upscaled.getchannel("A").getpixel((2, 2)) == 0


def test_a_mask_holds_the_detail_pass_off(service: Service, folder: Path) -> None:
    given = {"image": folder / "photo.png", "mask": folder / "mask.png", **FINISHED}
    _, _, files = predicted(service, **given)
    assert not outside(changed(files[0], folder / "photo.png"), [[300, 200, 420, 330]]).any()


def test_inpainting_draws_the_masked_part_alone(service: Service, folder: Path) -> None:
    given = {"image": folder / "phone.png", "mask": folder / "mask.png", "adetailer": False, **FAST}
    _, _, files = predicted(service, **given)
    differs = changed(files[0], folder / "phone.png")
    assert differs[210:320, 310:410].mean() > 0.95
    assert not outside(differs, [[300, 200, 420, 330]]).any()
    text, _ = read_parameters(files[0])
    assert "Inpaint area: Only masked, Masked area padding: 32," in text
    width, height = map(int, re.findall(r"Size: (\d+)x(\d+),", text)[0])
    assert 0.8 < width * height / 256**2 < 1.25, "the model's native area"


def test_the_whole_picture_is_drawn_where_that_is_asked_for(service: Service, folder: Path) -> None:
    given = {"image": folder / "photo.png", "mask": folder / "mask.png", "adetailer": False, **FAST}
    (image,), _, _ = predicted(service, inpaint_only_masked=False, **given)
    assert image.size == (288, 192)


def test_outpainting_keeps_the_picture_but_for_a_border(service: Service, folder: Path) -> None:
    given = {"image": folder / "phone.png", "adetailer": False, "outpaint": "left=64 bottom=40", **FAST}
    _, _, files = predicted(service, **given)
    with Image.open(files[0]) as image, Image.open(folder / "phone.png") as before:
        assert image.size == (997 + 64, 663 + 40)
        kept = (32, 0, 997, 663 - 32)
        assert image.crop((64 + 32, 0, 64 + 997, 663 - 32)).tobytes() == before.crop(kept).tobytes()
        assert np.asarray(image)[:, :64, 3].min() == 255 and np.asarray(image)[:, :64, :3].std() > 0
    text, record = read_parameters(files[0])
    assert "Denoising strength: 1," in text and "Outpaint: left=64 bottom=40," in text.replace('"', "")
    again = inputs_of_record(record, service.schema.properties)
    assert again.inputs["outpaint"] == "left=64 bottom=40"
    assert [notice.partition(":")[0] for notice in again.notices] == ["image", "mask"]


def test_the_record_gives_the_same_picture_again(service: Service, folder: Path) -> None:
    given: dict[str, Any] = {"image": folder / "photo.png", "mask": folder / "mask.png"}
    _, _, files = predicted(service, adetailer=False, inpaint_only_masked_padding=50, **given, **FAST)
    content = files[0].read_bytes()
    _, record = read_parameters(files[0])
    again = inputs_of_record(json.loads(json.dumps(record)), service.schema.properties)
    assert again.inputs["inpaint_only_masked_padding"] == 50 and again.inputs["inpaint_only_masked"] is True
    before = np.asarray(Image.open(files[0]))
    _, _, files = predicted(service, **{**again.inputs, **given})
    assert np.array_equal(before, np.asarray(Image.open(files[0]))) and content[:8] == files[0].read_bytes()[:8]


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"outpaint": "left=64"}, "outpaint: needs an image to extend"),
        ({"outpaint": "left=64", "image": "photo.png", "prompt_strength": 0.0}, "outpaint: paints nothing"),
        ({"outpaint": "left=4096 right=4096", "image": "photo.png"}, "outpaint: is 9189x663"),
        ({"outpaint": "up=64", "image": "photo.png"}, "outpaint: 'up' is no side"),
        (
            {"image": "large.png", "prompt_strength": 0.0, "adetailer_args": '{"ad_inpaint_only_masked": false}'},
            "adetailer_args: ad_inpaint_only_masked is off",
        ),
        ({"image": "huge.png", "prompt_strength": 0.0}, "image: is 8000x5001; at most 40 megapixels"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(
    service: Service, folder: Path, inputs: dict[str, Any], problem: str
) -> None:
    for name, size in {"large.png": (3000, 2000), "huge.png": (8000, 5001)}.items():
        if inputs.get("image") == name:
            Image.new("1", size).save(folder / name)
    given = {name: folder / value if name == "image" else value for name, value in inputs.items()}
    with pytest.raises(InputError) as caught:
        predicted(service, **given)
    assert str(caught.value).startswith(problem) and "\n" not in str(caught.value)
