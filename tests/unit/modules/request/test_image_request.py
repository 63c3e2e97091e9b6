"""What a request may hold; a wrong input is named before any model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.requests_data import DETECTORS, EMBEDDED, INPUTS, SCHNELL, SDXL

from backend.core.errors import InputError
from modules.diffusion.canvas import ASPECT_RATIOS, Canvas
from modules.request.image_request import ImageRequest, choose_size
from modules.request.parser import MAX_PIXELS, build_request, read_image

FLUX = Canvas(1024, 16)


def saved(folder: Path, name: str, size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, "red").save(folder / name)
    return folder / name


def test_flux_sizes_are_those_of_hosted_models() -> None:
    assert {ratio: FLUX.size(ratio, "1") for ratio in ASPECT_RATIOS} == dict(ASPECT_RATIOS)
    assert FLUX.size("1:1", "0.25") == (512, 512)


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("megapixels", ["1", "0.25"])
def test_the_embedded_family_scales_every_ratio_onto_its_grid(ratio: str, megapixels: str) -> None:
    width, height = EMBEDDED.canvas.size(ratio, megapixels)
    wanted = ASPECT_RATIOS[ratio][0] / ASPECT_RATIOS[ratio][1]
    assert width % 32 == height % 32 == 0
    assert abs(width - wanted * height) <= 32 * (1 + wanted) / 2 + 1


def test_an_image_gives_its_shape_and_the_native_area() -> None:
    assert choose_size(EMBEDDED.canvas, "16:9", "1", None, None, Image.new("RGB", (2000, 1000))) == (352, 192)


def test_seed_0_is_a_seed_and_no_seed_is_a_random_one() -> None:
    assert build_request(INPUTS, EMBEDDED, DETECTORS).seed == 0
    assert len({build_request({**INPUTS, "seed": None}, EMBEDDED, DETECTORS).seed for _ in range(4)}) > 1


def test_picture_i_has_seed_plus_i_and_the_last_seed_wraps() -> None:
    assert ImageRequest(prompt="x", width=256, height=256, seed=2**32 - 2, num_outputs=4).seeds == (
        2**32 - 2,
        2**32 - 1,
        0,
        1,
    )


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"prompt": "  "}, "prompt", "is empty"),
        ({"num_outputs": 5}, "num_outputs", "from 1 to 4"),
        ({"num_inference_steps": 0}, "num_inference_steps", "from 1 to 50"),
        ({"guidance_scale": -1}, "guidance_scale", "from 0 to 10"),
        ({"sampler": "Euler a"}, "sampler", "must be one of Euler, DPM++ 2M, DPM++ 2M SDE, UniPC, not 'Euler a'"),
        (
            {"scheduler": "KL Optimal"},
            "scheduler",
            "must be one of Simple, Karras, Exponential, Beta, Normal, SGM Uniform, not 'KL Optimal'",
        ),
        (
            {"negative_prompt": "blurry"},
            "negative_prompt",
            "Flux has none; leave it empty, and say in 'prompt' what the picture should show instead",
        ),
        (
            {"sampler": "UniPC", "scheduler": "Karras"},
            "scheduler",
            "'Karras' goes with the sampler Euler; UniPC takes Simple",
        ),
        ({"scale": 9}, "scale", "from 1 to 8"),
        ({"output_format": "gif"}, "output_format", "webp, jpg, png"),
        ({"output_quality": 101}, "output_quality", "from 0 to 100"),
        ({"prompt_strength": 1.5}, "prompt_strength", "from 0 to 1"),
        ({"seed": -1}, "seed", "from 0 to"),
        ({"aspect_ratio": "16:8"}, "aspect_ratio", "did you mean '16:9'"),
        ({"aspect_ratio": "custom", "width": 256}, "height", "is needed"),
        (
            {"aspect_ratio": "custom", "width": 300, "height": 256},
            "width",
            "must be a multiple of 32 for this model, not 300; use 288 or 320",
        ),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_request({**INPUTS, **changes}, EMBEDDED, DETECTORS)
    assert caught.value.field == field and message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mask_needs_an_image_of_its_size(tmp_path: Path) -> None:
    image, other = saved(tmp_path, "image.png"), saved(tmp_path, "mask.png", (64, 47))
    with pytest.raises(InputError, match="mask: needs an image"):
        build_request({**INPUTS, "mask": image}, EMBEDDED, DETECTORS)
    with pytest.raises(InputError, match=r"mask: must have the size of the image \(64x48\), not 64x47"):
        build_request({**INPUTS, "image": image, "mask": other}, EMBEDDED, DETECTORS)


def test_what_is_not_an_image_is_refused_without_its_path_or_content(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_text("root:x:0:0")
    with pytest.raises(InputError) as caught:
        read_image(secret, "image")
    assert (
        "is not an image" in str(caught.value) and "secret" not in str(caught.value) and "root" not in str(caught.value)
    )
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none.png", "image")


def test_a_cut_off_image_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "cut.png", (300, 300))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="image: is not an image that can be read"):
        read_image(path, "image")


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    path = tmp_path / "large.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(InputError, match="at most 40 megapixels"):
        read_image(path, "image")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(InputError, match="at most 40 megapixels"):
        read_image(path, "image")


def test_a_turned_photograph_is_set_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", "image").size == (20, 40)


def test_what_is_left_out_is_as_the_family_likes_it() -> None:
    asked = {
        name: build_request({**INPUTS, "go_fast": False}, family, DETECTORS)
        for name, family in (("dev", EMBEDDED), ("schnell", SCHNELL), ("sdxl", SDXL))
    }
    assert [(request.num_inference_steps, request.guidance_scale) for request in asked.values()] == [
        (28, 3.5),
        (4, 3.5),
        (30, 5.0),
    ]
    assert (
        build_request({**INPUTS, "num_inference_steps": 7, "guidance_scale": 0.0}, SDXL, DETECTORS).guidance_scale
        == 0.0
    )


def test_a_stable_diffusion_model_takes_a_negative_prompt_and_karras_with_every_sampler() -> None:
    request = build_request(
        {**INPUTS, "negative_prompt": "blurry", "sampler": "DPM++ 2M", "scheduler": "Karras", "go_fast": False},
        SDXL,
        DETECTORS,
    )
    assert (request.negative_prompt, request.scheduler) == ("blurry", "Karras")
    with pytest.raises(
        InputError,
        match="^scheduler: 'Normal' goes with the sampler Euler; UniPC takes Simple or Karras or Exponential$",
    ):
        build_request({**INPUTS, "sampler": "UniPC", "scheduler": "Normal"}, SDXL, DETECTORS)
    with pytest.raises(InputError, match="^go_fast: is for Flux; sdxl computes every step$"):
        build_request({**INPUTS, "go_fast": True}, SDXL, DETECTORS)
