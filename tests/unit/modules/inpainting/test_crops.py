"""Inpaint only masked, as the WebUI does it: blur, crop box, ratio, and putting back without touching anything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from modules.detection.detections import Mask, rectangle_masks
from modules.inpainting.crops import Box, blur_mask, composite, correct_colors, crop_region, expand_crop_region


def square(left: int, top: int, right: int, bottom: int, width: int = 100, height: int = 80) -> Mask:
    """A mask that is 255 from left and top to before right and bottom."""
    mask: Mask = rectangle_masks(np.array([[left, top, right - 1, bottom - 1]], np.float64), (width, height))[0]
    return mask


@st.composite
def boxes_in_images(draw: st.DrawFn, limit: int = 2000) -> tuple[Box, int, int]:
    width, height = draw(st.integers(1, limit)), draw(st.integers(1, limit))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))), width, height


# Blur


def test_no_blur_leaves_the_mask() -> None:
    assert np.array_equal(blur_mask(square(10, 10, 20, 20), 0), square(10, 10, 20, 20))


@pytest.mark.parametrize(("blur", "reach"), [(1, 3), (2, 5), (4, 10), (10, 25)])
def test_the_kernel_reaches_two_and_a_half_spreads(blur: int, reach: int) -> None:
    """A kernel of 2 * int(2.5 * blur + 0.5) + 1 pixels: what is farther away than half of it does not change."""
    blurred = blur_mask(square(60, 0, 200, 160, 200, 160), blur)
    assert not blurred[:, : 60 - reach].any()
    assert (blurred[:, 60 + reach :] == 255).all()
    assert 0 < blurred[80, 59] < blurred[80, 60] < 255


def test_the_values_are_a_gaussian_rounded_after_each_axis() -> None:
    point = np.zeros((31, 31), np.uint8)
    point[15, 15] = 255
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 2.0**2))
    across = 255 * weights / weights.sum()
    assert np.abs(blur_mask(point, 2)[15, 10:21] - across * weights[5] / weights.sum()).max() <= 1


def test_a_tiny_mask_can_become_blank() -> None:
    assert crop_region(blur_mask(square(50, 40, 51, 41), 30), 8) is None


# Crop box


@pytest.mark.parametrize(
    ("mask", "padding", "expected"),
    [
        (square(30, 20, 40, 50), 0, (30, 20, 40, 50)),
        (square(30, 20, 40, 50), 8, (22, 12, 48, 58)),
        pytest.param(square(5, 3, 98, 50), 8, (0, 0, 100, 58), id="inside the image"),
        (square(99, 79, 100, 80), 0, (99, 79, 100, 80)),
        (np.zeros((80, 100), np.uint8), 32, None),
    ],
)
def test_crop_region(mask: Mask, padding: int, expected: Box | None) -> None:
    assert crop_region(mask, padding) == expected


def test_faint_pixels_of_a_blurred_mask_count() -> None:
    assert crop_region((square(30, 20, 40, 50) // 255).astype(np.uint8), 0) == (30, 20, 40, 50)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 0, 0, 1, 255])),
    st.integers(0, 15),
)
def test_everything_masked_is_in_the_crop(mask: Mask, padding: int) -> None:
    box = crop_region(mask, padding)
    if box is None:
        assert not mask.any()
        return
    left, top, right, bottom = box
    assert 0 <= left < right <= mask.shape[1] and 0 <= top < bottom <= mask.shape[0]
    outside = mask.copy()
    outside[top:bottom, left:right] = 0
    assert not outside.any()


# Ratio


@pytest.mark.parametrize(
    ("box", "target", "image", "expected"),
    [
        pytest.param(
            (400, 400, 500, 500), (512, 512), (1024, 1024), (400, 400, 500, 500), id="the ratio is right already"
        ),
        pytest.param((400, 400, 528, 432), (512, 512), (1024, 1024), (400, 352, 528, 480), id="half on each side"),
        pytest.param((400, 400, 432, 528), (512, 512), (1024, 1024), (352, 400, 480, 528), id="the other axis"),
        pytest.param(
            (400, 400, 433, 528), (512, 512), (1024, 1024), (353, 400, 481, 528), id="an odd pixel goes right"
        ),
        pytest.param((10, 10, 138, 42), (512, 512), (1024, 1024), (10, 0, 138, 128), id="moved down, into the image"),
        pytest.param(
            (10, 1000, 138, 1024), (512, 512), (1024, 1024), (10, 896, 138, 1024), id="moved up, into the image"
        ),
        pytest.param(
            (900, 10, 1000, 310),
            (512, 768),
            (1000, 1000),
            (800, 10, 1000, 310),
            id="moved to the left, a portrait target",
        ),
        pytest.param(
            (0, 0, 100, 300), (1024, 1024), (200, 1000), (0, 0, 200, 300), id="an image too narrow for the ratio"
        ),
        pytest.param(
            (50, 50, 250, 70), (512, 512), (300, 100), (50, 0, 250, 100), id="an image too flat for the ratio"
        ),
    ],
)
def test_expand_crop_region(box: Box, target: tuple[int, int], image: tuple[int, int], expected: Box) -> None:
    assert expand_crop_region(box, *target, *image) == expected


@given(boxes_in_images(), st.integers(64, 2048), st.integers(64, 2048))
def test_the_box_grows_along_one_axis_inside_the_image_to_the_ratio(
    case: tuple[Box, int, int], width: int, height: int
) -> None:
    box, image_width, image_height = case
    left, top, right, bottom = expand_crop_region(box, width, height, image_width, image_height)
    assert 0 <= left <= box[0] and box[2] <= right <= image_width
    assert 0 <= top <= box[1] and box[3] <= bottom <= image_height
    wider, higher = (left, right) != (box[0], box[2]), (top, bottom) != (box[1], box[3])
    assert not (wider and higher)
    if wider and right - left < image_width:
        assert abs((right - left) - (bottom - top) * width / height) <= 1
    if higher and bottom - top < image_height:
        assert abs((bottom - top) - (right - left) * height / width) <= 1


# Putting back


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@given(boxes_in_images(40), st.integers(0, 6), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_pixels_outside_of_the_mask_keep_their_bytes(
    case: tuple[Box, int, int], blur: int, padding: int, seed: int
) -> None:
    box, width, height = case
    mask = blur_mask(square(*box, width, height), blur)
    region = crop_region(mask, padding)
    if region is None:
        return
    original = noise(width, height, seed)
    before = np.array(original)
    after = np.asarray(composite(original, noise(region[2] - region[0], region[3] - region[1], seed + 1), region, mask))
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert np.array_equal(np.asarray(original), before), "the given picture was changed"


def test_pixels_fully_inside_of_the_mask_are_the_crops_own() -> None:
    mask, crop = square(20, 10, 60, 50), noise(50, 50, 2)
    result = composite(noise(100, 80, 1), crop, (15, 5, 65, 55), mask)
    assert np.array_equal(np.asarray(result)[10:50, 20:60], np.asarray(crop)[5:45, 5:45])


def test_between_the_two_the_mask_is_the_share() -> None:
    mask = np.full((80, 100), 64, np.uint8)
    result = composite(
        Image.new("RGB", (100, 80), (200, 200, 200)), Image.new("RGB", (10, 10), (0, 0, 0)), (0, 0, 10, 10), mask
    )
    assert result.getpixel((5, 5)) == (150, 150, 150)
    assert result.getpixel((50, 50)) == (200, 200, 200), "outside of the box nothing was repainted"


def test_a_crop_painted_at_another_size_is_fitted_to_its_box() -> None:
    """An unchanged crop that was upscaled by two comes back, but for rounding, to where it was cut."""
    gradient = np.linspace(0, 255, 100)[None, :, None].repeat(80, 0).repeat(3, 2).astype(np.uint8)
    original, box = Image.fromarray(gradient), (20, 10, 60, 50)
    upscaled = original.crop(box).resize((80, 80), Image.Resampling.LANCZOS)
    result = composite(original, upscaled, box, blur_mask(square(25, 15, 55, 45), 2))
    assert np.abs(np.asarray(result).astype(int) - gradient).max() <= 2


@pytest.mark.parametrize("blur", [0, 4, 16])
def test_the_whole_way_keeps_an_unchanged_picture(blur: int) -> None:
    original = noise(100, 80, 3)
    mask = blur_mask(square(30, 20, 60, 50), blur)
    region = crop_region(mask, 8)
    assert region is not None
    box = expand_crop_region(region, 256, 256, 100, 80)
    assert np.array_equal(np.asarray(composite(original, original.crop(box), box, mask)), np.asarray(original))


class TestColorCorrection:
    def test_a_shift_that_the_untouched_part_shows_is_taken_off_everywhere(self) -> None:
        before = Image.effect_noise((64, 64), 40).convert("RGB")
        mask = Image.new("L", (64, 64))
        mask.paste(255, (16, 16, 48, 48))
        shifted = Image.fromarray((_pixels(before).clip(20, 235) + np.array([9, -6, 3])).astype(np.uint8))
        corrected = _pixels(
            correct_colors(shifted, Image.fromarray(_pixels(before).clip(20, 235).astype(np.uint8)), mask)
        )
        assert np.array_equal(corrected, _pixels(before).clip(20, 235))

    def test_without_an_untouched_part_nothing_is_known(self) -> None:
        painted = Image.new("RGB", (32, 32), "red")
        assert correct_colors(painted, Image.new("RGB", (32, 32), "blue"), Image.new("L", (32, 32), 255)) is painted


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)
