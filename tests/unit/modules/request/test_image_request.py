"""What a request may hold, whoever makes it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from modules.request.image_request import Hires, ImageRequest

REQUEST = ImageRequest(prompt="x", width=256, height=256, seed=0)


def test_picture_i_has_seed_plus_i_and_the_last_seed_wraps() -> None:
    assert ImageRequest(prompt="x", width=256, height=256, seed=2**32 - 2, num_outputs=4).seeds == (
        2**32 - 2,
        2**32 - 1,
        0,
        1,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " \n"}, "is empty"),
        ({"num_outputs": 5}, "less than or equal to 4"),
        ({"num_outputs": True}, "valid integer"),
        ({"scale": float("nan")}, "less than or equal to 8"),
        ({"sampler": "Euler a"}, "'Euler', 'DPM"),
        ({"output_format": "gif"}, "'webp', 'jpg' or 'png'"),
        ({"seed": 2**32}, "less than or equal to 4294967295"),
        ({"watermark": "x"}, "[Uu]nexpected"),
        ({"mask": Image.new("L", (64, 64))}, "needs an image"),
    ],
)
def test_a_changed_copy_is_checked_as_a_new_request_is(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, TypeError), match=message):
        replace(REQUEST, **changes)


def test_a_whole_number_may_come_as_a_float_because_json_does_not_tell_them_apart() -> None:
    steps = replace(REQUEST, num_inference_steps=4.0).num_inference_steps  # type: ignore[arg-type]
    assert steps == 4 and isinstance(steps, int)


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        REQUEST.prompt = "y"  # type: ignore[misc]


@pytest.mark.parametrize("changes", [{"scale": 0.9}, {"steps": 51}, {"strength": 1.1}, {"upscaler": "ESRGAN "}])
def test_hires_has_its_ranges(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        Hires(**changes)
