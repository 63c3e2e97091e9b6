"""Sizes that suit the picture, the model and the file."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from support.requests_data import EMBEDDED

from backend.core.errors import InputError
from modules.diffusion.canvas import Canvas
from modules.request.image_request import Hires, ImageRequest
from modules.request.sizes import check_finished_size, check_room, choose_size, finished_size

FLUX = Canvas(1024, 16)


def request(width: int = 1024, height: int = 1024, **changes: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "x", "seed": 0, "width": width, "height": height, **changes})


def refusal(wanted: ImageRequest) -> str:
    with pytest.raises(InputError) as caught:
        check_finished_size(wanted, FLUX)
    return str(caught.value)


@pytest.mark.parametrize(
    ("image", "wanted"), [((2000, 1000), (384, 192)), ((1242, 2688), (192, 416)), ((512, 512), (256, 256))]
)
def test_an_image_gives_its_shape_and_about_the_native_area(image: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert choose_size(EMBEDDED.canvas, "16:9", "1", None, None, Image.new("RGB", image)) == wanted


@pytest.mark.parametrize("scale", [1, 1.3, 2.5, 8])
def test_the_finished_size_is_that_of_the_files(scale: float) -> None:
    assert finished_size(request(1344, 768, scale=scale), FLUX) == (round(1344 * scale), round(768 * scale))


def test_hires_comes_before_scale() -> None:
    assert finished_size(request(768, 1360, hires=Hires(scale=2), scale=1.5), FLUX) == (2304, 4080)


def test_a_format_that_cannot_hold_the_picture_is_refused_with_one_that_can() -> None:
    strip = {"width": 2896, "height": 368, "scale": 8.0}
    assert refusal(request(**strip)) == (
        "output_format: webp holds at most 16383 pixels a side, not 23168x2944; use png, or a smaller scale"
    )
    check_finished_size(request(**strip, output_format="png"), FLUX)
    long = {**strip, "height": 368, "hires": Hires(scale=3), "scale": 7.9}
    assert "at most 150 megapixels are made, use a smaller scale or hr_scale" in refusal(
        request(**long, output_format="jpg")
    )


@pytest.mark.parametrize(
    ("changes", "field"), [({"scale": 8.0, "hires": Hires(scale=4)}, "scale"), ({"hires": Hires(scale=4)}, "")]
)
def test_more_than_memory_allows_is_refused(changes: dict[str, Any], field: str) -> None:
    if field:
        assert refusal(request(**changes)).startswith(
            f"{field}: makes a picture of 32768x32768; at most 150 megapixels"
        )
    else:
        check_finished_size(request(**changes), FLUX)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2000, 240), "the ratio may be at most 8:1"),
        ((240, 2000), "the ratio may be at most 8:1"),
        ((16, 80950), "less than or equal to 6144"),
        ((4, 4), "greater than or equal to 8"),
        ((2200, 2048), "together at most 4325376 pixels are drawn"),
    ],
)
def test_no_request_has_an_absurd_shape(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request(*size)


@pytest.mark.parametrize(
    ("changes", "least", "line"),
    [
        (
            {"image": Image.new("RGB", (3000, 2000)), "prompt_strength": 0.0, "scale": 2.0},
            120_000_000 + 960_000_000,
            "image: 1 of 3000x2000 to become 6000x4000 takes about 1.1 GB of host memory, and 0.5 GB are free; make the "
            "image smaller, or lower scale or num_outputs",
        ),
        (
            {"num_outputs": 2, "scale": 8.0},
            2 * (20 + 40 * 64) * 2**20,
            "scale: 2 of 1024x1024 to become 8192x8192 take about 5.4 GB of host memory",
        ),
    ],
)
def test_pictures_for_which_the_host_has_no_room_are_refused(changes: dict[str, Any], least: int, line: str) -> None:
    wanted = request(**changes)
    check_room(wanted, FLUX, least)
    with pytest.raises(InputError) as caught:
        check_room(wanted, FLUX, 500_000_000)
    assert str(caught.value).startswith(line)
    with pytest.raises(InputError):
        check_room(wanted, FLUX, least - 1)
