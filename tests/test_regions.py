"""What is repainted of what was found; and for everything else, why not."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.adetailer.arguments import AdetailerUnit
from modules.adetailer.masks import Detections, rectangle_masks
from modules.adetailer.regions import Found, Region, choose_regions, rounds
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
        (
            {"mask_select": "1, 3"},
            2,
            ["detection 2: not among the regions of ad_mask_select, it is number 2"],
        ),
        (
            {"mask_select": "2", "bbox_sortby": "Area (large to small)"},
            1,
            ["detection 2: not among the regions of ad_mask_select, it is number 1", "detection 3: not among the regions of ad_mask_select, it is number 3"],
        ),
    ],
)
def test_what_is_not_repainted_is_explained(arguments: dict[str, object], left: int, reasons: list[str]) -> None:
    found = chosen(**arguments)
    assert len(found.regions) == left and list(found.skipped) == reasons


@pytest.mark.parametrize(
    ("prompt", "order"),
    [("[ASC] a [SEP] b", [0, 1, 2]), ("[DSC]a", [2, 1, 0]), ("[ASC-SIZE] a", [2, 0, 1]), ("[DSC-SIZE] a", [1, 0, 2]), ("a [ASC]", [0, 1, 2])],
)
def test_a_prompt_may_begin_with_the_order(prompt: str, order: list[int]) -> None:
    lefts = [region.box[0] for region in chosen(prompt=prompt, inpaint_only_masked_padding=0, mask_blur=0, dilate_erode=0, **SQUARE).regions]
    assert np.argsort(np.argsort(lefts)).tolist() == order


SQUARE = {"use_inpaint_width_height": True, "inpaint_width": 256, "inpaint_height": 256}


@pytest.mark.parametrize(
    ("match", "sizes"),
    [("Off", [(256, 256)] * 3), ("Free", [(224, 288), (224, 288), (256, 256)]), ("Strict", [(224, 288), (224, 288), (256, 256)])],
)
def test_the_size_painted_at_can_follow_the_box(match: str, sizes: list[tuple[int, int]]) -> None:
    assert [region.size for region in chosen(match_inpaint_bbox_size=match).regions] == sizes


def test_a_large_region_is_redrawn_less_where_that_is_asked() -> None:
    unit = AdetailerUnit(denoising_strength=0.5, dynamic_denoise_power=2)
    large = chosen().regions[1]
    assert large.area_ratio == pytest.approx(100 * 120 / (256 * 192))
    assert unit.strength(large.area_ratio) == pytest.approx(0.5 * (1 - large.area_ratio) ** 2) and unit.strength(0) == 0.5


class TestRounds:
    @staticmethod
    def regions(*lefts: int) -> list[Region]:
        """Regions of 20 pixels with 10 more around them, at these places of a row."""
        made = []
        for number, left in enumerate(lefts, start=1):
            mask = np.zeros((40, 400), np.uint8)
            mask[10:30, left + 10 : left + 30] = 255
            made.append(Region((left, 0, left + 40, 40), mask, (64, 64), number))
        return made

    def numbers(self, *lefts: int) -> list[list[int]]:
        return [[region.number for region in together] for together in rounds(self.regions(*lefts))]

    def test_what_lies_apart_is_painted_together(self) -> None:
        assert self.numbers(0, 100, 200) == [[1, 2, 3]]

    def test_boxes_may_touch_where_nothing_is_changed(self) -> None:
        assert self.numbers(0, 30) == [[1, 2]]

    def test_what_sees_the_change_of_another_comes_after_it(self) -> None:
        assert self.numbers(0, 15, 200) == [[1, 3], [2]]

    def test_an_order_is_kept_through_a_chain(self) -> None:
        assert self.numbers(0, 15, 30, 200, 215) == [[1, 4], [2, 5], [3]]

    def test_nothing_found_needs_no_round(self) -> None:
        assert rounds([]) == []

    @given(st.lists(st.integers(0, 360), max_size=7))
    def test_no_region_overtakes_one_that_it_disturbs(self, lefts: list[int]) -> None:
        made = self.regions(*lefts)
        turn = {region.number: index for index, together in enumerate(rounds(made)) for region in together}
        assert sorted(turn) == [region.number for region in made]
        for first, second in combinations(made, 2):
            assert not first.disturbs(second) or turn[first.number] < turn[second.number]


def test_the_order_is_the_one_asked_for() -> None:
    lefts = [region.box[0] for region in chosen(bbox_sortby="Position (left to right)", inpaint_only_masked_padding=0, mask_blur=0).regions]
    assert lefts == sorted(lefts)
    areas = [int((region.mask > 0).sum()) for region in chosen(bbox_sortby="Area (large to small)", mask_blur=0).regions]
    assert areas == sorted(areas, reverse=True)
