"""From detections to the regions that are inpainted, with a reason for every detection that is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modules.adetailer.masks import filter_by_ratio, keep_largest, preprocess_detections, sort_detections
from modules.detection.detections import Detections, Floats, Mask, stacked_masks
from modules.diffusion.canvas import ASPECT_RATIOS, Canvas
from modules.inpainting.crops import blur_mask, crop_region, expand_crop_region
from modules.inpainting.region import Region
from modules.request.adetailer_unit import SORT_ORDERS, AdetailerUnit, prompt_order, skipping_mark


@dataclass(frozen=True)
class ChosenRegions:
    """The regions of one picture in the order in which they are inpainted, why other detections are not, and all
    detections."""

    regions: tuple[Region, ...]
    skipped: tuple[str, ...]
    detections: Detections


def choose_regions(
    detections: Detections,
    unit: AdetailerUnit,
    image_size: tuple[int, int],
    canvas: Canvas,
    allowed: Mask | None = None,
) -> ChosenRegions:
    """Ratio filter, top k, order, mask shape, then the crops: ADetailer's order. Detections are numbered as the
    detector gives them, the most confident first.

    ``allowed`` is a mask of the picture, 0 where nothing may change.
    """
    kept, skipped = _filtered(detections, unit, image_size)
    shaped, lost = _shaped(kept, unit)
    skipped += lost
    if allowed is not None:
        inside = shaped.take([index for index, mask in enumerate(shaped.masks) if np.minimum(mask, allowed).any()])
        skipped += _explain(shaped, inside, lambda one: "lies outside of the input 'mask'", unit)
        shaped = inside
    regions: list[Region] = []
    for number, (own, box, mask) in enumerate(zip(shaped.numbers, shaped.boxes, shaped.masks), start=1):
        name = _name(int(own), unit)
        if unit.selected and number not in unit.selected:
            skipped.append(f"{name}: not among the regions of ad_mask_select, it is number {number}")
        elif mark := skipping_mark(unit.prompt, number - 1):
            skipped.append(f"{name}: {mark} in ad_prompt, it is number {number}")
        elif region := _region(number, box, mask, image_size, unit, canvas, allowed):
            regions.append(region)
        else:
            skipped.append(f"{name}: nothing is left of its mask after the blur")
    return ChosenRegions(tuple(regions), tuple(skipped), detections)


def _filtered(detections: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> tuple[Detections, list[str]]:
    """The detections that pass the ratio filter and the top k, in the unit's order; and why the others do not."""
    fitting = filter_by_ratio(detections, unit.mask_min_ratio, unit.mask_max_ratio, image_size)
    skipped = _explain(detections, fitting, lambda one: _ratio_reason(one, unit, image_size))
    kept = keep_largest(fitting, unit.mask_k, unit.mask_filter_method)
    skipped += _explain(fitting, kept, lambda one: _rank_reason(one, unit, image_size))
    return _sorted(kept, unit, image_size), skipped


def _shaped(detections: Detections, unit: AdetailerUnit) -> tuple[Detections, list[str]]:
    """The detections with their masks moved, dilated, merged and inverted; and why some are lost."""
    shaped = preprocess_detections(detections, unit.dilate_erode, unit.x_offset, unit.y_offset)
    skipped = _explain(
        detections,
        shaped,
        lambda one: "nothing is left of its mask after offset and erosion" if one.masks.any() else "its mask is blank",
    )
    merged = preprocess_detections(shaped, merge_invert=unit.mask_merge_invert)
    if len(shaped) and not len(merged):
        skipped.append(
            "all detections: nothing is left of the picture after merging and inverting (ad_mask_merge_invert)"
        )
    return merged, skipped


def _explain(
    before: Detections, after: Detections, reason: Callable[[Detections], str], unit: AdetailerUnit | None = None
) -> list[str]:
    """A line for every detection that is in ``before`` only. ``reason`` takes one detection; ``unit`` tells whether
    they are merged."""
    gone = [before.take([index]) for index, number in enumerate(before.numbers) if number not in after.numbers]
    return [f"{_name(int(one.numbers[0]), unit)}: {reason(one)}" for one in gone]


def _name(number: int, unit: AdetailerUnit | None) -> str:
    return "all detections, merged" if unit and unit.mask_merge_invert != "None" else f"detection {number}"


def _share(one: Detections, image_size: tuple[int, int]) -> float:
    """The share of the picture that the box of one detection covers."""
    return float(one.areas()[0]) / (image_size[0] * image_size[1])


def _ratio_reason(one: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> str:
    share = _share(one, image_size)
    if share < unit.mask_min_ratio:
        return f"covers {share:.2g} of the picture, less than ad_mask_min_ratio, {unit.mask_min_ratio:g}"
    return f"covers {share:.2g} of the picture, more than ad_mask_max_ratio, {unit.mask_max_ratio:g}"


def _rank_reason(one: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> str:
    own = (
        f"covers {_share(one, image_size):.2g} of the picture"
        if unit.mask_filter_method == "Area"
        else f"has the confidence {one.confidences[0]:.2f}"
    )
    return f"{own}, not among the first {unit.mask_k} by {unit.mask_filter_method} (ad_mask_k)"


def batches(regions: Sequence[Region]) -> list[list[Region]]:
    """The regions of one picture in as few batches as possible: no two of a batch overlap, and of two that overlap the
    first is in an earlier batch. The result is the same as with one region after the other."""
    turns: list[int] = []
    for index, region in enumerate(regions):
        before = [turns[other] + 1 for other in range(index) if regions[other].overlaps(region)]
        turns.append(max(before, default=0))
    return [
        [region for region, own in zip(regions, turns, strict=True) if own == turn]
        for turn in range(max(turns, default=-1) + 1)
    ]


def _sorted(detections: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> Detections:
    """In the order that the unit's prompt starts with, else in the unit's."""
    order, _ = prompt_order(unit.prompt)
    if not order:
        return sort_detections(detections, SORT_ORDERS[unit.bbox_sortby], image_size)
    x1, y1, _, _ = detections.boxes.T
    rising = np.argsort(detections.areas(), kind="stable") if "SIZE" in order else np.lexsort((y1, x1))
    return detections.take(rising[::-1] if order.startswith("[DSC") else rising)


def _region(
    number: int,
    box: Floats,
    mask: Mask,
    image_size: tuple[int, int],
    unit: AdetailerUnit,
    canvas: Canvas,
    allowed: Mask | None,
) -> Region | None:
    blurred = blur_mask(mask, unit.mask_blur)
    free = blurred if allowed is None else np.minimum(blurred, allowed)
    if not free.any():
        return None
    [free] = stacked_masks([free], 1, image_size)
    x1, y1, x2, y2 = (float(side) for side in box)
    ratio = (x2 - x1) * (y2 - y1) / (image_size[0] * image_size[1])
    target = _inpaint_size(max(1.0, x2 - x1) / max(1.0, y2 - y1), unit, canvas)
    if not unit.inpaint_only_masked:
        size = target if unit.use_inpaint_width_height else canvas.fitted(*image_size)
        return Region((0, 0, *image_size), free, size, number, ratio)
    crop = crop_region(blurred, unit.inpaint_only_masked_padding)
    assert crop is not None  # a mask that is not blank has a box
    return Region(expand_crop_region(crop, *target, *image_size), free, target, number, ratio)


def _inpaint_size(box_ratio: float, unit: AdetailerUnit, canvas: Canvas) -> tuple[int, int]:
    """The size at which a region is inpainted whose box is ``box_ratio`` times as wide as high: the native or the
    requested size, or one of the same area with the box's shape ("Free") or the nearest usual aspect ratio
    ("Strict")."""
    width, height = (
        (unit.inpaint_width, unit.inpaint_height) if unit.use_inpaint_width_height else (canvas.native, canvas.native)
    )
    if unit.match_inpaint_bbox_size == "Off":
        return canvas.fitted(width, height)
    usual = [ratio_width / ratio_height for ratio_width, ratio_height in ASPECT_RATIOS.values()]
    if unit.match_inpaint_bbox_size == "Strict":
        box_ratio = min(usual, key=lambda one: abs(math.log(one / box_ratio)))
    box_ratio = min(max(box_ratio, min(usual)), max(usual))  # models compose badly in more extreme shapes
    return canvas.fitted(math.sqrt(width * height * box_ratio), math.sqrt(width * height / box_ratio))
