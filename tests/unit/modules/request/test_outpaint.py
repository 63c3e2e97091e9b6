"""The input ``outpaint``: its words, the canvas and the mask."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from backend.core.errors import InputError
from modules.request.original import Original
from modules.request.outpaint import Margins, read_margins


@pytest.mark.parametrize(
    ("text", "margins"),
    [
        ("", None),
        ("  ", None),
        ("left=128", Margins(left=128)),
        ("right=64, left=32", Margins(left=32, right=64)),
        ("top=8 bottom=16 left=0", Margins(top=8, bottom=16)),
    ],
)
def test_sides_are_written_with_their_pixels(text: str, margins: Margins | None) -> None:
    assert read_margins(text) == margins


def test_a_record_has_them_in_the_same_words() -> None:
    margins = Margins(left=3, bottom=9)
    assert str(margins) == "left=3 bottom=9" and read_margins(str(margins)) == margins


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("128", "'128' is no side with its pixels"),
        ("left", "'left' is no side with its pixels"),
        ("left=", "'left=' is no side"),
        ("left=-5", "'left=-5' is no side"),
        ("left=1.5", "'left=1.5' is no side"),
        ("left = 5", "'left' is no side with its pixels"),
        ("lft=5", "'lft' is no side (did you mean 'left'?)"),
        ("left=5 left=6", "'left' is given twice"),
        ("left=5000", "a side gets at most 4096 pixels"),
        ("left=0", "adds nothing"),
    ],
)
def test_other_words_are_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        read_margins(text)
    message = str(caught.value)
    assert message.startswith("outpaint: ") and problem in message and "\n" not in message


def photograph(size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_the_image_keeps_its_pixels_on_the_canvas() -> None:
    image, margins = photograph(), Margins(left=200, top=10, bottom=3)  # wider than the image is
    canvas = margins.extended(Original(image, image)).image
    assert canvas.size == (296, 77) and canvas.crop((200, 10, 296, 74)) == image
    assert np.asarray(canvas.crop((0, 0, 200, 77))).std() > 0, "the fill shows the image"


def test_what_is_new_is_opaque() -> None:
    image = photograph()
    extended = Margins(right=8).extended(Original(image, image, b"", Image.new("L", image.size, 7)))
    assert extended.opacity is not None
    assert np.asarray(extended.opacity)[0].tolist() == [7] * 96 + [255] * 8


def test_the_mask_covers_what_is_new_and_a_border_of_the_image() -> None:
    mask = np.asarray(Margins(left=20, bottom=10).mask((96, 64)))
    assert mask.shape == (74, 116)
    kept = np.zeros_like(mask)
    kept[: 64 - 8, 20 + 12 :] = 255  # an eighth of 96 and of 64
    assert np.array_equal(mask, 255 - kept)


def test_a_mask_of_the_image_is_painted_too() -> None:
    own = Image.new("L", (48, 32))  # of its shape
    own.paste(255, (24, 12, 36, 20))
    mask = np.asarray(Margins(left=20).mask((96, 64), own))
    assert mask[32, 20 + 60] == 255 and mask[5, 20 + 60] == 0
