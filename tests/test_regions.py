"""What is repainted of what was found; and for everything else, why not."""

from __future__ import annotations

import numpy as np
import pytest

from modules.adetailer.arguments import AdetailerUnit
from modules.adetailer.masks import Detections, rectangle_masks
from modules.adetailer.regions import Found, choose_regions
from modules.request import Canvas

SIZE = (256, 192)
BOXES = np.array([[20, 20, 60, 70], [100, 30, 200, 150], [230, 170, 238, 178]], float)
"""Middling, large, tiny; the surest first."""


def chosen(**arguments: object) -> Found:
    found = Detections(BOXES, rectangle_masks(BOXES, SIZE), np.array([0.9, 0.8, 0.7]))
    return choose_regions(found, AdetailerUnit(**arguments), SIZE, Canvas(256, 32))  # type: ignore[arg-type]


def test_everything_found_is_repainted_by_default() -> None:
    found = chosen()
    assert len(found.regions) == 3 and found.skipped == ()
    assert all(region.size == (256, 256) for region in found.regions)


@pytest.mark.parametrize(
    ("arguments", "left", "reasons"),
    [
        ({"mask_min_ratio": 0.01}, 2, ["detection 3: covers less of the picture than ad_mask_min_ratio, 0.01"]),
        ({"mask_max_ratio": 0.1}, 2, ["detection 2: covers more of the picture than ad_mask_max_ratio, 0.1"]),
        ({"mask_k": 1}, 1, ["detection 1: not among the first 1 by Area (ad_mask_k)", "detection 3: not among the first 1 by Area (ad_mask_k)"]),
        ({"mask_k": 2, "mask_filter_method": "Confidence"}, 2, ["detection 3: not among the first 2 by Confidence (ad_mask_k)"]),
        ({"dilate_erode": -20}, 2, ["detection 3: nothing is left of its mask after offset and erosion"]),
        ({"mask_blur": 40, "dilate_erode": -8}, 2, ["detection 3: nothing is left of its mask after the blur"]),
        ({"mask_merge_invert": "Merge"}, 1, []),
    ],
)
def test_what_is_not_repainted_is_explained(arguments: dict[str, object], left: int, reasons: list[str]) -> None:
    found = chosen(**arguments)
    assert len(found.regions) == left and list(found.skipped) == reasons


def test_the_order_is_the_one_asked_for() -> None:
    lefts = [region.box[0] for region in chosen(bbox_sortby="Position (left to right)", inpaint_only_masked_padding=0, mask_blur=0).regions]
    assert lefts == sorted(lefts)
    areas = [int((region.mask > 0).sum()) for region in chosen(bbox_sortby="Area (large to small)", mask_blur=0).regions]
    assert areas == sorted(areas, reverse=True)
