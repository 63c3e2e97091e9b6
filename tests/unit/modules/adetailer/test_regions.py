"""Which detections become regions, and why the others do not; and which regions are inpainted together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.adetailer.regions import ChosenRegions, batches, choose_regions
from modules.detection.detections import Detections, rectangle_masks
from modules.diffusion.canvas import Canvas
from modules.inpainting.region import Region
from modules.request.adetailer_unit import AdetailerUnit

SIZE = (256, 192)
BOXES = np.array([[20, 20, 60, 70], [100, 30, 200, 150], [230, 170, 238, 178]], float)
"""Middling, large, tiny; the surest first."""


def chosen(**arguments: object) -> ChosenRegions:
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

    def chosen(self, **arguments: object) -> ChosenRegions:
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


def region(number: int, box: tuple[int, int], mask: tuple[int, int]) -> Region:
    """A region of a row of 400 x 40 pixels: left and right of its crop, and of what changes in it."""
    pixels = np.zeros((40, 400), np.uint8)
    pixels[10:30, mask[0] : mask[1]] = 255
    return Region((box[0], 0, box[1], 40), pixels, (64, 64), number)


class TestBatches:
    def numbers(self, regions: list[Region]) -> list[list[int]]:
        return [[one.number for one in batch] for batch in batches(regions)]

    @pytest.mark.parametrize(
        ("lefts", "expected"),
        [
            ((), []),
            ((0, 100, 200), [[1, 2, 3]]),
            ((0, 30), [[1, 2]]),  # the crops overlap, but only where neither changes anything
            ((0, 29), [[1], [2]]),
            ((29, 0), [[1], [2]]),
            ((0, 0), [[1], [2]]),
            ((0, 15, 200), [[1, 3], [2]]),
            ((0, 15, 30), [[1], [2], [3]]),  # 3 waits for 2, which waits for 1
            ((30, 0, 15), [[1, 2], [3]]),
            ((0, 200, 15, 215, 100), [[1, 2, 5], [3, 4]]),
            ((0, 20, 40, 60, 80), [[1], [2], [3], [4], [5]]),
            ((100, 0, 80, 20, 60), [[1, 2], [3, 4], [5]]),
        ],
    )
    def test_a_region_comes_after_those_that_it_overlaps(
        self, lefts: tuple[int, ...], expected: list[list[int]]
    ) -> None:
        """Crops of 40 pixels, of which the 20 in the middle change."""
        regions = [region(number, (left, left + 40), (left + 10, left + 30)) for number, left in enumerate(lefts, 1)]
        assert self.numbers(regions) == expected

    def test_it_is_enough_that_one_of_two_sees_what_the_other_changes(self) -> None:
        """The change of the small crop lies within the large one; that of the large one is not in the small one."""
        small, large = region(1, (0, 40), (10, 30)), region(2, (0, 100), (70, 90))
        assert small.overlaps(large) and large.overlaps(small)
        assert self.numbers([small, large]) == [[1], [2]]
        assert self.numbers([large, small]) == [[2], [1]]

    @given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100), st.integers(0, 99), st.integers(1, 100))))
    def test_the_result_is_that_of_one_region_after_the_other(self, given: list[tuple[int, int, int, int]]) -> None:
        """Where what is painted depends on every pixel of the crop."""
        regions = []
        for number, (left, width, start, changed) in enumerate(given, 1):
            mask_left = left + min(start, width - 1)
            regions.append(region(number, (left, left + width), (mask_left, min(mask_left + changed, left + width))))

        def painted(turns: list[list[Region]]) -> np.ndarray:
            picture = np.arange(40 * 400).reshape(40, 400) % 251
            for turn in turns:
                crops = [picture[:, one.box[0] : one.box[2]] for one in turn]
                values = [int((crop * np.arange(1, crop.size + 1).reshape(crop.shape)).sum()) % 65521 for crop in crops]
                for one, value in zip(turn, values, strict=True):
                    picture[one.mask > 0] = value + one.number
            return picture

        assert np.array_equal(painted(batches(regions)), painted([[one] for one in regions]))


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
