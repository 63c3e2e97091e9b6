"""What is repainted of what was found; and for everything else, why not."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.adetailer.regions import Found, Region, batches, choose_regions
from modules.detection.detections import Detections, rectangle_masks
from modules.diffusion.canvas import Canvas
from modules.request.adetailer_unit import AdetailerUnit

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
        ({"mask_min_ratio": 0.01}, 2, ["detection 3: covers 0.0013 of the picture, less than ad_mask_min_ratio, 0.01"]),
        ({"mask_max_ratio": 0.1}, 2, ["detection 2: covers 0.24 of the picture, more than ad_mask_max_ratio, 0.1"]),
        (
            {"mask_k": 1},
            1,
            [
                "detection 1: covers 0.041 of the picture, not among the first 1 by Area (ad_mask_k)",
                "detection 3: covers 0.0013 of the picture, not among the first 1 by Area (ad_mask_k)",
            ],
        ),
        (
            {"mask_k": 2, "mask_filter_method": "Confidence"},
            2,
            ["detection 3: has the confidence 0.70, not among the first 2 by Confidence (ad_mask_k)"],
        ),
        ({"dilate_erode": -20}, 2, ["detection 3: nothing is left of its mask after offset and erosion"]),
        ({"mask_blur": 40, "dilate_erode": -8}, 2, ["detection 3: nothing is left of its mask after the blur"]),
        ({"mask_merge_invert": "Merge"}, 1, []),
        (
            {"mask_merge_invert": "Merge and Invert", "dilate_erode": 128, "mask_k": 1},
            1,
            [
                f"detection {number}: covers {share} of the picture, not among the first 1 by Area (ad_mask_k)"
                for number, share in ((1, 0.041), (3, 0.0013))
            ],
        ),
        ({"prompt": "a [SEP] [SKIP] [SEP] b"}, 2, ["detection 2: [SKIP] in ad_prompt, it is number 2"]),
        (
            {"mask_select": "1, 3"},
            2,
            ["detection 2: not among the regions of ad_mask_select, it is number 2"],
        ),
        (
            {"mask_select": "2", "bbox_sortby": "Area (large to small)"},
            1,
            [
                "detection 2: not among the regions of ad_mask_select, it is number 1",
                "detection 3: not among the regions of ad_mask_select, it is number 3",
            ],
        ),
    ],
)
def test_what_is_not_repainted_is_explained(arguments: dict[str, object], left: int, reasons: list[str]) -> None:
    found = chosen(**arguments)
    assert len(found.regions) == left and list(found.skipped) == reasons


def test_a_merged_mask_that_covers_everything_leaves_nothing_when_it_is_inverted() -> None:
    whole = np.array([[0, 0, 256, 192]], float)
    found = choose_regions(
        Detections(whole, rectangle_masks(whole, SIZE), np.array([0.9])),
        AdetailerUnit(mask_merge_invert="Merge and Invert"),
        SIZE,
        Canvas(256, 32),
    )
    assert found.regions == () and found.skipped == (
        "all detections: nothing is left of the picture after merging and inverting (ad_mask_merge_invert)",
    )


def test_two_detections_with_one_box_are_told_apart() -> None:
    twice = np.array([BOXES[0], BOXES[0]])
    found = Detections(twice, rectangle_masks(twice, SIZE), np.array([0.9, 0.8]))
    canvas = Canvas(256, 32)
    [reason] = choose_regions(found, AdetailerUnit(mask_k=1), SIZE, canvas).skipped
    assert reason.startswith("detection 2: covers")
    [reason] = choose_regions(found, AdetailerUnit(mask_select="2"), SIZE, canvas).skipped
    assert reason == "detection 1: not among the regions of ad_mask_select, it is number 1"


def test_a_segmented_mask_without_a_pixel_is_explained() -> None:
    masks = rectangle_masks(BOXES, SIZE)
    masks[1] = 0
    found = choose_regions(Detections(BOXES, masks, np.array([0.9, 0.8, 0.7])), AdetailerUnit(), SIZE, Canvas(256, 32))
    assert len(found.regions) == 2 and found.skipped == ("detection 2: its mask is blank",)


@pytest.mark.parametrize("match", ["Off", "Free", "Strict"])
def test_a_box_at_the_edge_without_a_width_is_repainted_too(match: str) -> None:
    thin = np.array([[0, 20, 0, 70]], float)
    found = Detections(thin, rectangle_masks(thin, SIZE), np.array([0.9]))
    assert len(choose_regions(found, AdetailerUnit(match_inpaint_bbox_size=match), SIZE, Canvas(256, 32)).regions) == 1


class TestInputMask:
    """What may change, 255; the left half of the picture."""

    allowed = np.zeros((192, 256), np.uint8)
    allowed[:, :128] = 255

    def chosen(self, **arguments: object) -> Found:
        found = Detections(BOXES, rectangle_masks(BOXES, SIZE), np.array([0.9, 0.8, 0.7]))
        return choose_regions(found, AdetailerUnit(**arguments), SIZE, Canvas(256, 32), self.allowed)  # type: ignore[arg-type]

    def test_what_lies_outside_of_it_is_not_repainted_and_not_counted(self) -> None:
        found = self.chosen(bbox_sortby="Position (left to right)")
        assert [region.number for region in found.regions] == [1, 2] and found.skipped == (
            "detection 3: lies outside of the input 'mask'",
        )

    def test_what_lies_across_its_edge_is_cut_out_whole_and_repainted_within(self) -> None:
        within, free = self.chosen().regions[1], chosen().regions[1]
        assert within.box == free.box
        assert np.array_equal(within.mask, np.minimum(free.mask, self.allowed)) and within.mask.any()

    def test_the_whole_picture_as_the_region_too(self) -> None:
        assert not any(region.mask[:, 128:].any() for region in self.chosen(inpaint_only_masked=False).regions)


@pytest.mark.parametrize(
    ("prompt", "order"),
    [
        ("[ASC] a [SEP] b", [0, 1, 2]),
        ("[DSC]a", [2, 1, 0]),
        ("[ASC-SIZE] a", [2, 0, 1]),
        ("[DSC-SIZE] a", [1, 0, 2]),
        ("a [ASC]", [0, 1, 2]),
    ],
)
def test_a_prompt_may_begin_with_the_order(prompt: str, order: list[int]) -> None:
    lefts = [
        region.box[0]
        for region in chosen(
            prompt=prompt, inpaint_only_masked_padding=0, mask_blur=0, dilate_erode=0, **SQUARE
        ).regions
    ]
    assert np.argsort(np.argsort(lefts)).tolist() == order


SQUARE = {"use_inpaint_width_height": True, "inpaint_width": 256, "inpaint_height": 256}


@pytest.mark.parametrize(
    ("match", "sizes"),
    [
        ("Off", [(256, 256)] * 3),
        ("Free", [(224, 288), (224, 288), (256, 256)]),
        ("Strict", [(224, 288), (224, 288), (256, 256)]),
    ],
)
def test_the_size_painted_at_can_follow_the_box(match: str, sizes: list[tuple[int, int]]) -> None:
    assert [region.size for region in chosen(match_inpaint_bbox_size=match).regions] == sizes


def test_a_large_region_is_redrawn_less_where_that_is_asked() -> None:
    unit = AdetailerUnit(denoising_strength=0.5, dynamic_denoise_power=2)
    large = chosen().regions[1]
    assert large.area_ratio == pytest.approx(100 * 120 / (256 * 192))
    assert (
        unit.strength(large.area_ratio) == pytest.approx(0.5 * (1 - large.area_ratio) ** 2) and unit.strength(0) == 0.5
    )


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
        return [[region.number for region in together] for together in batches(self.regions(*lefts))]

    def test_what_lies_apart_is_painted_together(self) -> None:
        assert self.numbers(0, 100, 200) == [[1, 2, 3]]

    def test_boxes_may_touch_where_nothing_is_changed(self) -> None:
        assert self.numbers(0, 30) == [[1, 2]]

    def test_what_sees_the_change_of_another_comes_after_it(self) -> None:
        assert self.numbers(0, 15, 200) == [[1, 3], [2]]

    def test_an_order_is_kept_through_a_chain(self) -> None:
        assert self.numbers(0, 15, 30, 200, 215) == [[1, 4], [2, 5], [3]]

    def test_nothing_found_needs_no_round(self) -> None:
        assert batches([]) == []

    @given(st.lists(st.integers(0, 360), max_size=7))
    def test_no_region_overtakes_one_that_it_disturbs(self, lefts: list[int]) -> None:
        made = self.regions(*lefts)
        turn = {region.number: index for index, together in enumerate(batches(made)) for region in together}
        assert sorted(turn) == [region.number for region in made]
        for first, second in combinations(made, 2):
            assert not first.overlaps(second) or turn[first.number] < turn[second.number]


def test_the_order_is_the_one_asked_for() -> None:
    lefts = [
        region.box[0]
        for region in chosen(bbox_sortby="Position (left to right)", inpaint_only_masked_padding=0, mask_blur=0).regions
    ]
    assert lefts == sorted(lefts)
    areas = [
        int((region.mask > 0).sum()) for region in chosen(bbox_sortby="Area (large to small)", mask_blur=0).regions
    ]
    assert areas == sorted(areas, reverse=True)
