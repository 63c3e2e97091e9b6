"""The areas of the input ``ad_mask``."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from modules.adetailer.own_mask import MAX_AREAS, areas_of, joined
from modules.detection.detections import Detections


def test_each_white_area_is_a_detection_with_its_own_outline() -> None:
    mask = Image.new("L", (200, 100))
    draw = ImageDraw.Draw(mask)
    draw.ellipse((120, 10, 180, 70), fill=255)
    draw.rectangle((10, 40, 50, 90), fill=200)
    draw.rectangle((60, 0, 80, 20), fill=90)  # darker than half: it stays
    found = areas_of(mask, (200, 100))
    assert found.boxes.tolist() == [[120, 10, 181, 71], [10, 40, 51, 91]] and found.confidences.tolist() == [1, 1]
    assert not found.masks[0, 12, 122] and found.masks[0, 40, 150] == 255, "the corner of the ellipse's box is black"
    assert found.masks[1].sum() == 255 * 41 * 51


def test_a_mask_of_another_size_is_brought_to_the_picture() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 32, 32))
    found = areas_of(mask, (256, 256))
    assert np.abs(found.boxes - [[64, 64, 128, 128]]).max() <= 2 and found.masks.shape == (1, 256, 256)


def test_of_many_specks_the_largest_are_taken() -> None:
    pixels = np.zeros((100, 400), np.uint8)
    pixels[::4, ::4] = 255
    pixels[37:63, 197:243] = 0
    pixels[40:60, 200:240] = 255
    found = areas_of(Image.fromarray(pixels), (400, 100))
    assert len(found) == MAX_AREAS and found.areas().max() == 20 * 40


def test_a_black_mask_has_no_areas() -> None:
    found = areas_of(Image.new("L", (40, 20)), (40, 20))
    assert len(found) == 0 and found.masks.shape == (0, 20, 40)


def test_painted_areas_come_before_those_that_are_detected() -> None:
    one = Detections(np.array([[0.0, 0, 4, 4]]), np.zeros((1, 8, 8), np.uint8), np.array([1.0]))
    two = Detections(np.array([[4.0, 4, 8, 8]] * 2), np.ones((2, 8, 8), np.uint8), np.array([0.9, 0.5]))
    both = joined(one, two)
    assert both.numbers.tolist() == [1, 2, 3] and both.confidences.tolist() == [1, 0.9, 0.5] and both.masks[2].all()
