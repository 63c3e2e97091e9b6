"""Masks from drawings, and any detections."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from modules.detection.detections import Detections, Mask, rectangle_masks


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
