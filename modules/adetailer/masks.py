"""Filters, sorts and reshapes detections: small pure functions on arrays.

The results are those of ADetailer 25.3 (Bing-su/adetailer, ``adetailer/mask.py``) without its defects: nothing wraps
around the image's edge, no mask is blank, and a box, its mask and its confidence stay together in every step. Masks,
boxes and sizes are those of :mod:`modules.detection.detections`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from PIL import Image

from backend.core.errors import InputError, nearest
from modules.detection.detections import Detections, Floats, Mask, bounding_box, stacked_masks

Choice = TypeVar("Choice")

MERGE_INVERT = ("None", "Merge", "Merge and Invert")


def offset_mask(mask: Mask, x: int, y: int) -> Mask:
    """Moves the mask ``x`` pixels to the right and ``y`` pixels **up**. What leaves the image is gone; what enters
    it is 0."""
    height, width = mask.shape
    return np.asarray(
        Image.fromarray(mask).crop((-x, y, width - x, height + y))
    )  # PIL fills with 0 outside of the image


def dilate_erode_mask(mask: Mask, size: int) -> Mask:
    """Dilates by a ``size`` x ``size`` square, or erodes for a negative size, as OpenCV does it.

    An even kernel has no middle: OpenCV's anchor is then one pixel behind it, so size 4 grows a mask by 1 pixel to the
    left and top and by 2 to the right and bottom. That is kept: users know these regions. The image's edge does not
    erode.
    """
    import cv2

    if size == 0:
        return mask
    kernel = np.ones((abs(size), abs(size)), np.uint8)
    return np.asarray(cv2.dilate(mask, kernel) if size > 0 else cv2.erode(mask, kernel), np.uint8)


def shape_mask(mask: Mask, dilate_erode: int, x_offset: int, y_offset: int) -> Mask:
    """Offset (y points up), then dilate or erode."""
    return dilate_erode_mask(offset_mask(mask, x_offset, y_offset), dilate_erode)


def preprocess_masks(
    masks: Iterable[Mask], dilate_erode: int = 0, x_offset: int = 0, y_offset: int = 0, merge_invert: str = "None"
) -> list[Mask]:
    """Offset (y points up), dilate or erode, merge and invert, in ADetailer's order. None of the returned masks is
    blank.

    Raises:
        InputError: ``merge_invert`` is not one of ``MERGE_INVERT``.
    """
    _chosen("mask_merge_invert", merge_invert, {name: name for name in MERGE_INVERT})
    shaped = [shape_mask(mask, dilate_erode, x_offset, y_offset) for mask in masks]
    kept = [mask for mask in shaped if mask.any()]
    if merge_invert != "None" and kept:
        merged = np.bitwise_or.reduce(kept)
        kept = [merged if merge_invert == "Merge" else ~merged]
    return [mask for mask in kept if mask.any()]


def preprocess_detections(
    detections: Detections, dilate_erode: int = 0, x_offset: int = 0, y_offset: int = 0, merge_invert: str = "None"
) -> Detections:
    """:func:`preprocess_masks` for whole detections: a mask that became blank takes its box and confidence with it.

    A box stays where the detector saw it. A merged mask is one detection: the box around its pixels, the highest
    confidence.
    """
    _chosen("mask_merge_invert", merge_invert, {name: name for name in MERGE_INVERT})
    size = detections.masks.shape[:0:-1]
    kept = detections
    if dilate_erode or x_offset or y_offset or not all(mask.any() for mask in detections.masks):
        shaped = (shape_mask(mask, dilate_erode, x_offset, y_offset) for mask in detections.masks)
        moved = replace(detections, masks=stacked_masks(shaped, len(detections), size))
        kept = moved.take([index for index, mask in enumerate(moved.masks) if mask.any()])
    if merge_invert == "None":
        return kept
    merged = preprocess_masks(kept.masks, merge_invert=merge_invert)
    boxes = np.array([bounding_box(mask) for mask in merged], np.float64).reshape(-1, 4)
    return Detections(
        boxes, stacked_masks(merged, len(merged), size), np.full(len(merged), kept.confidences.max(initial=0.0))
    )


def filter_by_ratio(
    detections: Detections, min_ratio: float, max_ratio: float, image_size: tuple[int, int]
) -> Detections:
    """Those whose box covers at least ``min_ratio`` and at most ``max_ratio`` of the image."""
    ratios = detections.areas() / (image_size[0] * image_size[1])
    return detections.take(np.flatnonzero((min_ratio <= ratios) & (ratios <= max_ratio)))


def keep_largest(detections: Detections, k: int, method: str = "Area") -> Detections:
    """The ``k`` with the largest box or the highest confidence, that one first; all, in their order, when ``k`` is 0.

    Equals keep their order (ADetailer leaves theirs to chance).

    Raises:
        InputError: ``method`` is neither ``Area`` nor ``Confidence``.
    """
    measure = _chosen("mask_filter_method", method, _MEASURES)
    if k == 0:
        return detections
    return detections.take(np.argsort(-measure(detections), kind="stable")[:k])


def sort_detections(detections: Detections, order: str, image_size: tuple[int, int]) -> Detections:
    """Sorts the detections. Equals keep their order.

    Args:
        order: ``None`` (as detected), ``Left to right`` (by the box's left edge), ``Center to edge`` (by the distance
            between the centres of box and image) or ``Area`` (large to small).

    Raises:
        InputError: ``order`` is none of these.
    """
    key = _chosen("sort_order", order, _SORT_KEYS)
    return detections.take(np.argsort(key(detections, image_size), kind="stable"))


def _chosen(field: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    if name not in choices:
        raise InputError(field, f"must be one of {', '.join(choices)}, not '{name}'{nearest(name, choices)}")
    return choices[name]


def _distances(detections: Detections, image_size: tuple[int, int]) -> Floats:
    x1, y1, x2, y2 = detections.boxes.T
    return np.asarray(np.hypot((x1 + x2) / 2 - image_size[0] / 2, (y1 + y2) / 2 - image_size[1] / 2))


_MEASURES: Mapping[str, Callable[[Detections], Floats]] = {
    "Area": Detections.areas,
    "Confidence": lambda detections: detections.confidences,
}
_SORT_KEYS: Mapping[str, Callable[[Detections, tuple[int, int]], Floats]] = {
    "None": lambda detections, _: np.zeros(len(detections)),
    "Left to right": lambda detections, _: detections.boxes[:, 0],
    "Center to edge": _distances,
    "Area": lambda detections, _: -detections.areas(),
}
