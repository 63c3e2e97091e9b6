"""The region that is drawn for the input mask, and how it goes over into what stays."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from modules.diffusion.canvas import Canvas
from modules.inpainting.input_mask import at_size, changeable, feathered, masked_region
from modules.request.image_request import ImageRequest

CANVAS = Canvas(native=256, multiple=16)
SIZE = (600, 400)


def mask_of(*boxes: tuple[int, int, int, int], value: int = 255, size: tuple[int, int] = SIZE) -> Image.Image:
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(value, box)
    return mask


def request(mask: Image.Image, **fields: object) -> ImageRequest:
    image = Image.new("RGB", SIZE)
    return ImageRequest(prompt="a fox", width=256, height=256, seed=0, image=image, mask=mask, **fields)  # type: ignore[arg-type]


def test_what_is_black_stays_and_the_middle_of_the_mask_changes() -> None:
    mask = mask_of((100, 100, 200, 200))
    weights = changeable(request(mask), SIZE)
    assert weights is not None
    assert not weights[np.asarray(mask) == 0].any()
    assert (weights[104:196, 104:196] == 255).all()
    edge = weights[150, 100:104].astype(int)
    assert (np.diff(edge) > 0).all() and 0 < edge[0] < 128


@pytest.mark.parametrize("thickness", [1, 2, 3, 5])
def test_a_thin_stroke_changes_in_its_middle(thickness: int) -> None:
    weights = feathered(np.asarray(mask_of((50, 200, 550, 200 + thickness))), 4)
    assert weights[:, 300].max() == 255


def test_at_the_border_of_the_picture_a_mask_has_no_edge() -> None:
    weights = feathered(np.asarray(mask_of((500, 0, 600, 400))), 4)
    assert (weights[:, 599] == 255).all() and weights[0, 550] == 255


def test_noise_of_a_jpeg_is_no_part_of_the_mask() -> None:
    mask = mask_of((100, 100, 200, 200))
    mask.paste(9, (400, 300, 420, 310))
    assert not at_size(mask, SIZE)[300:310].any()
    drawn, _ = masked_region(request(mask, inpaint_only_masked_padding=0), Image.new("RGB", SIZE), CANVAS)
    assert drawn.box == (100, 100, 200, 200)


@pytest.mark.parametrize("padding", [0, 32, 256])
@pytest.mark.parametrize("box", [(0, 0, 40, 40), (100, 150, 400, 190), (10, 0, 60, 400), (0, 0, 600, 400)])
def test_the_crop_holds_the_mask_and_its_padding(box: tuple[int, int, int, int], padding: int) -> None:
    drawn, pasted = masked_region(
        request(mask_of(box), inpaint_only_masked_padding=padding), Image.new("RGB", SIZE), CANVAS
    )
    left, top, right, bottom = drawn.box
    assert pasted.box == drawn.box and 0 <= left < right <= 600 and 0 <= top < bottom <= 400
    assert left <= max(0, box[0] - padding) and right >= min(600, box[2] + padding)
    assert top <= max(0, box[1] - padding) and bottom >= min(400, box[3] + padding)
    width, height = drawn.size
    assert width % 16 == height % 16 == 0 and 0.6 < width * height / 256**2 < 1.5
    assert 0.35 < width / height < 2.8


def test_megapixels_decide_the_area() -> None:
    small, _ = masked_region(request(mask_of((100, 100, 300, 300)), megapixels="0.25"), Image.new("RGB", SIZE), CANVAS)
    assert small.size == (128, 128)


def test_the_mask_may_be_smaller_than_the_image() -> None:
    drawn, _ = masked_region(
        request(mask_of((50, 50, 100, 100), size=(300, 200)), inpaint_only_masked_padding=0),
        Image.new("RGB", SIZE),
        CANVAS,
    )
    assert np.allclose(drawn.box, (100, 100, 200, 200), atol=1)


def test_without_the_option_the_mask_is_grown() -> None:
    weights = changeable(request(mask_of((100, 100, 200, 200)), inpaint_only_masked=False), SIZE)
    assert weights is not None and weights[150, 98] > 0
