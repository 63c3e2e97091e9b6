"""What a detector returns for one image, and masks from boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from PIL import Image, ImageDraw
from support.masks import any_detections, detections, mask

from modules.detection.detections import Detections, bounding_box, rectangle_masks


def test_detections_that_do_not_belong_together_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        Detections(np.zeros((2, 4)), np.zeros((1, 8, 8), np.uint8), np.zeros(2))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        pytest.param((1, 1, 3, 2), ["......", ".###..", ".###..", "......"], id="both corners are included"),
        pytest.param((1.9, 1.9, 3.9, 2.9), ["......", ".###..", ".###..", "......"], id="fractions are dropped"),
        pytest.param((0, 0, 6, 4), ["######"] * 4, id="a box that ends at the image's edges"),
        pytest.param((-0.5, -3, 0.5, 0.5), ["#.....", "......", "......", "......"], id="what lies outside is cut off"),
        pytest.param((6, 4, 6, 4), ["......"] * 4, id="a box on the edge covers nothing"),
    ],
)
def test_a_box_becomes_a_filled_rectangle(box: tuple[float, float, float, float], expected: list[str]) -> None:
    assert np.array_equal(rectangle_masks(np.array([box], np.float64), (6, 4)), [mask(*expected)])


@given(any_detections())
def test_rectangles_are_those_of_pillow(case: tuple[Detections, tuple[int, int]]) -> None:
    found, size = case
    for box, ours in zip(found.boxes, found.masks):
        theirs = Image.new("L", size)
        ImageDraw.Draw(theirs).rectangle(tuple(box), fill=255)
        assert np.array_equal(ours, np.asarray(theirs))


def test_a_selection_keeps_box_mask_confidence_and_number_together() -> None:
    three = detections([(0, 0, 5, 5), (10, 10, 20, 20), (30, 30, 60, 60)], [0.9, 0.8, 0.7])
    chosen = three.take([2, 0])
    assert chosen.boxes[:, 0].tolist() == [30, 0] and chosen.confidences.tolist() == [0.7, 0.9]
    assert chosen.numbers.tolist() == [3, 1] and chosen.areas().tolist() == [900, 25]
    assert [bounding_box(one) for one in chosen.masks] == [(30, 30, 61, 61), (0, 0, 6, 6)]


def test_a_blank_mask_has_no_bounding_box() -> None:
    assert bounding_box(mask("...", "...")) is None
