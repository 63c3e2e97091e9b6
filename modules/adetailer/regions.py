"""From what a detector found to what is repainted; what falls out on the way is explained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from modules.adetailer.crops import Box, blur_mask, crop_region, expand_crop_region
from modules.adetailer.masks import filter_by_ratio, keep_largest, preprocess_detections, sort_detections
from modules.detection.detections import Detections, Floats, Mask, bounding_box
from modules.diffusion.canvas import ASPECT_RATIOS, Canvas
from modules.request.adetailer_unit import SORT_ORDERS, AdetailerUnit, prompt_order, region_prompt


@dataclass(frozen=True, eq=False)
class Region:
    """What is cut out of a picture to be repainted: ``mask`` is the whole picture's, blurred; ``size`` what is painted
    at.

    ``number`` counts the regions of a picture from 1, in their order; ``area_ratio`` is the share of the picture that
    its box covers.
    """

    box: Box
    mask: Mask
    size: tuple[int, int]
    number: int = 1
    area_ratio: float = 0.0

    @cached_property
    def painted(self) -> Box:
        """The box around the pixels that repainting can change."""
        box = bounding_box(self.mask)
        assert box is not None  # a region has a mask that is not blank
        return box

    def overlaps(self, other: Region) -> bool:
        """Whether one of the two sees what the other changes, so that it matters which comes first."""
        return _overlap(self.painted, other.box) or _overlap(other.painted, self.box)

    def crop(self, image: Image.Image) -> Image.Image:
        return image.crop(self.box).resize(self.size, Image.Resampling.LANCZOS)

    def crop_mask(self) -> Image.Image:
        return Image.fromarray(self.mask).crop(self.box).resize(self.size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Found:
    """The regions of one picture in the order in which they are repainted, why the other detections are not, and all
    of these."""

    regions: tuple[Region, ...]
    skipped: tuple[str, ...]
    detections: Detections


def choose_regions(
    detections: Detections,
    unit: AdetailerUnit,
    image_size: tuple[int, int],
    canvas: Canvas,
    allowed: Mask | None = None,
) -> Found:
    """Ratio filter, top k, order, mask shape, then the crops: ADetailer's order. Detections are numbered as found, the
    surest is 1.

    ``allowed`` is the picture's, 0 where nothing may change.
    """
    skipped: list[str] = []

    def explain(before: Detections, after: Detections, reason: Callable[[Detections], str]) -> None:
        """``reason`` takes one detection."""
        gone = [before.take([index]) for index, number in enumerate(before.numbers) if number not in after.numbers]
        skipped.extend(f"detection {one.numbers[0]}: {reason(one)}" for one in gone)

    fitting = filter_by_ratio(detections, unit.mask_min_ratio, unit.mask_max_ratio, image_size)
    explain(detections, fitting, lambda one: _ratio_reason(one, unit, image_size))
    kept = keep_largest(fitting, unit.mask_k, unit.mask_filter_method)
    explain(fitting, kept, lambda one: _rank_reason(one, unit, image_size))
    kept = _sorted(kept, unit, image_size)
    shaped = preprocess_detections(kept, unit.dilate_erode, unit.x_offset, unit.y_offset)
    explain(
        kept,
        shaped,
        lambda one: "nothing is left of its mask after offset and erosion" if one.masks.any() else "its mask is blank",
    )
    merged = preprocess_detections(shaped, merge_invert=unit.mask_merge_invert)
    if len(shaped) and not len(merged):
        skipped.append(
            "all detections: nothing is left of the picture after merging and inverting (ad_mask_merge_invert)"
        )
    within = (
        merged
        if allowed is None
        else merged.take([index for index, mask in enumerate(merged.masks) if np.minimum(mask, allowed).any()])
    )
    name = {
        int(number): f"detection {number}" if unit.mask_merge_invert == "None" else "all detections, merged"
        for number in merged.numbers
    }
    skipped += [
        f"{name[number]}: lies outside of the input 'mask'" for number in merged.numbers if number not in within.numbers
    ]
    regions: list[Region] = []
    for number, (own, box, mask) in enumerate(zip(within.numbers, within.boxes, within.masks), start=1):
        if unit.selected and number not in unit.selected:
            skipped.append(f"{name[own]}: not among the regions of ad_mask_select, it is number {number}")
        elif region_prompt(unit.prompt, "", number - 1) is None:
            skipped.append(f"{name[own]}: [SKIP] in ad_prompt, it is number {number}")
        elif region := _region(number, box, mask, image_size, unit, canvas, allowed):
            regions.append(region)
        else:
            skipped.append(f"{name[own]}: nothing is left of its mask after the blur")
    return Found(tuple(regions), tuple(skipped), detections)


def _share(one: Detections, image_size: tuple[int, int]) -> float:
    """Of the picture, that the box of one detection covers."""
    return float(one.areas()[0]) / (image_size[0] * image_size[1])


def _ratio_reason(one: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> str:
    share = _share(one, image_size)
    name, asked = (
        ("mask_min_ratio", unit.mask_min_ratio)
        if share < unit.mask_min_ratio
        else ("mask_max_ratio", unit.mask_max_ratio)
    )
    return f"covers {share:.2g} of the picture, {'less' if share < asked else 'more'} than ad_{name}, {asked:g}"


def _rank_reason(one: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> str:
    own = (
        f"covers {_share(one, image_size):.2g} of the picture"
        if unit.mask_filter_method == "Area"
        else f"has the confidence {one.confidences[0]:.2f}"
    )
    return f"{own}, not among the first {unit.mask_k} by {unit.mask_filter_method} (ad_mask_k)"


def batches(regions: Sequence[Region]) -> list[list[Region]]:
    """The regions of one picture in as few rounds as give what one after the other gives: no two of a round see each
    other's change."""
    levels: list[int] = []
    for index, region in enumerate(regions):
        levels.append(
            max((levels[before] + 1 for before in range(index) if regions[before].overlaps(region)), default=0)
        )
    return [
        [region for region, own in zip(regions, levels, strict=True) if own == level]
        for level in range(max(levels, default=-1) + 1)
    ]


def _sorted(detections: Detections, unit: AdetailerUnit, image_size: tuple[int, int]) -> Detections:
    """In the order that the unit's prompt begins with, else in the unit's."""
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
    x1, y1, x2, y2 = (float(side) for side in box)
    ratio = (x2 - x1) * (y2 - y1) / (image_size[0] * image_size[1])
    target = _painting_size(max(1.0, x2 - x1) / max(1.0, y2 - y1), unit, canvas)
    if not unit.inpaint_only_masked:
        size = target if unit.use_inpaint_width_height else canvas.fitted(*image_size)
        return Region((0, 0, *image_size), free, size, number, ratio)
    crop = crop_region(blurred, unit.inpaint_only_masked_padding)
    assert crop is not None  # a mask that is not blank has a box
    return Region(expand_crop_region(crop, *target, *image_size), free, target, number, ratio)


def _painting_size(box_ratio: float, unit: AdetailerUnit, canvas: Canvas) -> tuple[int, int]:
    """The size at which a region is painted whose box is ``box_ratio`` times as wide as high: the native or the asked
    one, or one of that area and the box's shape ("Free"), or of the nearest usual aspect ratio ("Strict")."""
    width, height = (
        (unit.inpaint_width, unit.inpaint_height) if unit.use_inpaint_width_height else (canvas.native, canvas.native)
    )
    if unit.match_inpaint_bbox_size == "Off":
        return canvas.fitted(width, height)
    usual = [ratio_width / ratio_height for ratio_width, ratio_height in ASPECT_RATIOS.values()]
    if unit.match_inpaint_bbox_size == "Strict":
        box_ratio = min(usual, key=lambda one: abs(math.log(one / box_ratio)))
    box_ratio = min(max(box_ratio, min(usual)), max(usual))  # models draw nothing sensible in a shape beyond those
    return canvas.fitted(math.sqrt(width * height * box_ratio), math.sqrt(width * height / box_ratio))


def _overlap(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])
