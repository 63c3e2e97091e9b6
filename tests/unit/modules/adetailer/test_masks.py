"""The mask mathematics: what a unit's arguments do to boxes and masks, and the defects of ADetailer that must not
come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from backend.core.errors import InputError
from modules.adetailer.masks import (
    MERGE_INVERT,
    dilate_erode_mask,
    filter_by_ratio,
    keep_largest,
    offset_mask,
    preprocess_detections,
    preprocess_masks,
    sort_detections,
)
from modules.detection.detections import Detections, Mask, bounding_box, rectangle_masks

ORDERS = ("None", "Left to right", "Center to edge", "Area")
METHODS = ("Area", "Confidence")


def mask(*rows: str) -> Mask:
    """A mask from a drawing: ``#`` is 255."""
    return np.array([[255 if pixel == "#" else 0 for pixel in row] for row in rows], np.uint8)


def detections(
    boxes: list[tuple[float, float, float, float]],
    confidences: list[float] | None = None,
    size: tuple[int, int] = (100, 80),
) -> Detections:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(
        array,
        rectangle_masks(array, size),
        np.array(confidences or [0.9 - 0.1 * index for index in range(len(boxes))], np.float64),
    )


@st.composite
def any_detections(draw: st.DrawFn) -> tuple[Detections, tuple[int, int]]:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    across = st.lists(st.floats(0, width, width=32), min_size=2, max_size=2).map(sorted)
    down = st.lists(st.floats(0, height, width=32), min_size=2, max_size=2).map(sorted)
    boxes = draw(st.lists(st.tuples(across, down), max_size=5))
    confidences = draw(st.lists(st.floats(0, 1), min_size=len(boxes), max_size=len(boxes)))
    return detections([(x[0], y[0], x[1], y[1]) for x, y in boxes], confidences, (width, height)), (width, height)


def rows(found: Detections) -> list[tuple[bytes, bytes, float]]:
    """Each detection as one thing that can be compared."""
    return [
        (box.tobytes(), pixels.tobytes(), confidence)
        for box, pixels, confidence in zip(found.boxes, found.masks, found.confidences)
    ]


# Detections


def test_detections_that_do_not_belong_together_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        Detections(np.zeros((2, 4)), np.zeros((1, 8, 8), np.uint8), np.zeros(2))


# Boxes to masks


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


# Offset


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, ["....", ".##.", "....", "...."]),
        (1, 0, ["....", "..##", "....", "...."]),
        (-1, 0, ["....", "##..", "....", "...."]),
        pytest.param(0, 1, [".##.", "....", "....", "...."], id="y points up"),
        (0, -2, ["....", "....", "....", ".##."]),
        pytest.param(2, 0, ["....", "...#", "....", "...."], id="what leaves is gone"),
    ],
)
def test_offset(x: int, y: int, expected: list[str]) -> None:
    assert np.array_equal(offset_mask(mask("....", ".##.", "....", "...."), x, y), mask(*expected))


@given(st.integers(-200, 200), st.integers(-200, 200))
def test_offset_does_not_wrap_around(x: int, y: int) -> None:
    """ADetailer moves with ``ImageChops.offset``, so a face at the right edge was repainted at the left one."""
    full = np.full((30, 50), 255, np.uint8)
    moved = offset_mask(full, x, y)
    rows_left, columns_left = max(30 - abs(y), 0), max(50 - abs(x), 0)
    assert moved.shape == full.shape
    assert np.count_nonzero(moved) == rows_left * columns_left
    if rows_left and columns_left:
        assert bounding_box(moved) == (max(x, 0), max(-y, 0), 50 + min(x, 0), 30 - max(y, 0))


# Dilate and erode

DOT = mask(*["......."] * 3, "...#...", *["......."] * 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, (3, 3, 4, 4)),
        (1, (3, 3, 4, 4)),
        pytest.param(2, (3, 3, 5, 5), id="even: one pixel to the right and bottom"),
        (3, (2, 2, 5, 5)),
        pytest.param(4, (2, 2, 6, 6), id="even, ADetailer's default: 1 left and top, 2 right and bottom"),
        (5, (1, 1, 6, 6)),
        (128, (0, 0, 7, 7)),
    ],
)
def test_dilate(size: int, expected: tuple[int, int, int, int]) -> None:
    grown = dilate_erode_mask(DOT, size)
    assert bounding_box(grown) == expected
    assert np.array_equal(grown, rectangle_masks(np.array([expected], np.float64) - [0, 0, 1, 1], (7, 7))[0])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (-1, (10, 10, 30, 30)),
        pytest.param(-2, (11, 11, 30, 30), id="even: one pixel from the left and top"),
        (-3, (11, 11, 29, 29)),
        pytest.param(-4, (12, 12, 29, 29), id="even: 2 from the left and top, 1 from the right and bottom"),
        (-20, (20, 20, 21, 21)),
        (-21, None),
    ],
)
def test_erode(size: int, expected: tuple[int, int, int, int] | None) -> None:
    square = rectangle_masks(np.array([[10.0, 10, 29, 29]]), (40, 40))[0]
    assert bounding_box(dilate_erode_mask(square, size)) == expected


def test_the_edge_of_the_image_does_not_erode() -> None:
    full = np.full((9, 9), 255, np.uint8)
    assert np.array_equal(dilate_erode_mask(full, -5), full)


# Preprocessing of masks

LEFT, RIGHT = mask("##....", "##...."), mask("....##", "....##")


@pytest.mark.parametrize(
    ("masks", "mode", "expected"),
    [
        ([], "None", []),
        ([], "Merge", []),
        ([], "Merge and Invert", []),
        ([LEFT, RIGHT], "None", [LEFT, RIGHT]),
        ([LEFT, RIGHT], "Merge", [mask("##..##", "##..##")]),
        ([LEFT, RIGHT], "Merge and Invert", [mask("..##..", "..##..")]),
        ([LEFT, np.zeros_like(LEFT)], "None", [LEFT]),
        pytest.param([LEFT, ~LEFT], "Merge and Invert", [], id="nothing is left to repaint"),
    ],
)
def test_merge_and_invert(masks: list[Mask], mode: str, expected: list[Mask]) -> None:
    assert [m.tolist() for m in preprocess_masks(masks, merge_invert=mode)] == [m.tolist() for m in expected]


def test_offset_comes_before_dilation() -> None:
    """The other way round, what had grown out of the image would be lost."""
    moved_then_grown = preprocess_masks([mask("#...", "....")], dilate_erode=3, x_offset=-1)
    assert moved_then_grown == []
    assert [m.tolist() for m in preprocess_masks([mask(".#..", "....")], dilate_erode=3, x_offset=-1)] == [
        mask("##..", "##..").tolist()
    ]


@given(
    any_detections(), st.integers(-12, 12), st.integers(-20, 20), st.integers(-20, 20), st.sampled_from(MERGE_INVERT)
)
def test_preprocessed_masks_are_never_blank_and_hold_only_0_and_255(
    case: tuple[Detections, tuple[int, int]], size: int, x: int, y: int, mode: str
) -> None:
    found, _ = case
    for result in preprocess_masks(list(found.masks), size, x, y, mode):
        assert result.any()
        assert result.dtype == np.uint8
        assert set(np.unique(result)) <= {0, 255}
        assert result.shape == found.masks.shape[1:]


# Preprocessing of detections


@given(
    any_detections(), st.integers(-12, 12), st.integers(-20, 20), st.integers(-20, 20), st.sampled_from(MERGE_INVERT)
)
def test_detections_have_the_masks_of_preprocess_masks(
    case: tuple[Detections, tuple[int, int]], size: int, x: int, y: int, mode: str
) -> None:
    found, _ = case
    result = preprocess_detections(found, size, x, y, mode)
    assert [m.tolist() for m in result.masks] == [
        m.tolist() for m in preprocess_masks(list(found.masks), size, x, y, mode)
    ]


def test_a_dropped_mask_takes_its_box_and_confidence_along() -> None:
    """In ADetailer the boxes stay: the second face is then repainted with the strength and size meant for the first."""
    found = detections([(5, 5, 8, 8), (30, 30, 60, 60), (70, 5, 73, 8), (10, 40, 20, 70)], [0.9, 0.8, 0.7, 0.6])
    kept = preprocess_detections(found, dilate_erode=-6)
    assert kept.boxes.tolist() == [[30, 30, 60, 60], [10, 40, 20, 70]]
    assert kept.confidences.tolist() == [0.8, 0.6]
    assert [bounding_box(m) for m in kept.masks] == [(33, 33, 59, 59), (13, 43, 19, 69)]


def test_a_mask_that_leaves_the_image_is_dropped() -> None:
    kept = preprocess_detections(detections([(80, 10, 95, 20), (10, 10, 20, 20)]), x_offset=30)
    assert kept.boxes.tolist() == [[10, 10, 20, 20]]


@pytest.mark.parametrize(
    ("mode", "box"),
    [("Merge", [5, 6, 61, 71]), ("Merge and Invert", [0, 0, 100, 80])],
)
def test_a_merged_mask_is_one_detection(mode: str, box: list[float]) -> None:
    """In ADetailer it keeps the boxes of all that were merged, and the first one decides."""
    merged = preprocess_detections(detections([(5, 50, 10, 70), (30, 6, 60, 20)], [0.4, 0.7]), merge_invert=mode)
    assert merged.boxes.tolist() == [box]
    assert merged.confidences.tolist() == [0.7]
    assert len(merged.masks) == 1


@pytest.mark.parametrize("mode", MERGE_INVERT)
def test_nothing_found_stays_nothing(mode: str) -> None:
    result = preprocess_detections(detections([]), 4, 1, 1, mode)
    assert len(result) == 0
    assert result.masks.shape == (0, 80, 100)


# Filter, top k, sort

SMALL, MIDDLE, LARGE = (60, 40, 70, 50), (10, 10, 30, 30), (20, 20, 60, 60)  # 100, 400 and 1600 of 8000 pixels


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.0, 1.0, [SMALL, LARGE, MIDDLE]),
        pytest.param(0.05, 1.0, [LARGE, MIDDLE], id="the limits themselves are in"),
        pytest.param(0.0, 0.05, [SMALL, MIDDLE], id="the order stays"),
        (0.06, 0.19, []),
    ],
)
def test_ratio_filter(low: float, high: float, kept: list[tuple[int, ...]]) -> None:
    result = filter_by_ratio(detections([SMALL, LARGE, MIDDLE]), low, high, (100, 80))
    assert [tuple(box) for box in result.boxes] == kept


@pytest.mark.parametrize(
    ("k", "method", "kept"),
    [
        pytest.param(0, "Area", [SMALL, LARGE, MIDDLE], id="0 is off, the order stays"),
        (1, "Area", [LARGE]),
        (2, "Area", [LARGE, MIDDLE]),
        (9, "Area", [LARGE, MIDDLE, SMALL]),
        (1, "Confidence", [MIDDLE]),
        (2, "Confidence", [MIDDLE, SMALL]),
    ],
)
def test_top_k(k: int, method: str, kept: list[tuple[int, ...]]) -> None:
    result = keep_largest(detections([SMALL, LARGE, MIDDLE], [0.5, 0.3, 0.8]), k, method)
    assert [tuple(box) for box in result.boxes] == kept


@pytest.mark.parametrize("method", METHODS)
def test_equals_keep_their_order_in_top_k(method: str) -> None:
    """ADetailer leaves theirs to chance, so the same request may repaint another face."""
    boxes = [(float(x), 10.0, float(x + 5), 20.0) for x in range(0, 80, 10)]
    result = keep_largest(detections(boxes, [0.5] * len(boxes)), 3, method)
    assert [tuple(box) for box in result.boxes] == boxes[:3]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("None", [SMALL, LARGE, MIDDLE]),
        ("Left to right", [MIDDLE, LARGE, SMALL]),
        ("Center to edge", [LARGE, SMALL, MIDDLE]),
        ("Area", [LARGE, MIDDLE, SMALL]),
    ],
)
def test_sort(order: str, expected: list[tuple[int, ...]]) -> None:
    result = sort_detections(detections([SMALL, LARGE, MIDDLE]), order, (100, 80))
    assert [tuple(box) for box in result.boxes] == expected


@given(
    any_detections(),
    st.sampled_from(ORDERS),
    st.integers(0, 6),
    st.sampled_from(METHODS),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_box_mask_and_confidence_stay_together(
    case: tuple[Detections, tuple[int, int]], order: str, k: int, method: str, low: float, high: float
) -> None:
    """ADetailer sorts boxes and masks and leaves the confidences behind."""
    found, size = case
    result = sort_detections(keep_largest(filter_by_ratio(found, low, high, size), k, method), order, size)
    remaining = rows(found)
    for row in rows(result):
        remaining.remove(row)  # raises where a row is not one of the given
    if k:
        assert len(result) <= k


@given(any_detections(), st.sampled_from(ORDERS))
def test_sorting_loses_nothing_and_is_stable(case: tuple[Detections, tuple[int, int]], order: str) -> None:
    found, size = case
    once = sort_detections(found, order, size)
    assert sorted(rows(once)) == sorted(rows(found))
    assert rows(sort_detections(once, order, size)) == rows(once)


def test_unknown_choices_are_refused_with_the_nearest_known_one() -> None:
    found = detections([SMALL])
    with pytest.raises(
        InputError, match=r"^mask_filter_method: must be one of Area, Confidence, not 'area' \(did you mean 'Area'\?\)$"
    ):
        keep_largest(found, 1, "area")
    with pytest.raises(InputError, match="did you mean 'Merge and Invert'"):
        preprocess_detections(found, merge_invert="Merge and invert")
    with pytest.raises(
        InputError, match=r"^sort_order: must be one of None, Left to right, Center to edge, Area, not 'Random'$"
    ):
        sort_detections(found, "Random", (100, 80))
