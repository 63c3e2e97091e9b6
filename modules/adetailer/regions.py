"""From what a detector found to what is repainted; what falls out on the way is explained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from modules.adetailer.arguments import SORT_ORDERS, AdetailerUnit
from modules.adetailer.crops import Box, blur_mask, crop_region, expand_crop_region
from modules.adetailer.masks import Detections, Mask, filter_by_ratio, keep_largest, preprocess_detections, sort_detections
from modules.request import Canvas


@dataclass(frozen=True)
class Region:
    """What is cut out of a picture to be repainted: ``mask`` is the whole picture's, blurred; ``size`` what is painted at."""

    box: Box
    mask: Mask
    size: tuple[int, int]

    def crop(self, image: Image.Image) -> Image.Image:
        return image.crop(self.box).resize(self.size, Image.Resampling.LANCZOS)

    def crop_mask(self) -> Image.Image:
        return Image.fromarray(self.mask).crop(self.box).resize(self.size, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Found:
    """The regions of one picture in the order in which they are repainted, and why the other detections are not."""

    regions: tuple[Region, ...]
    skipped: tuple[str, ...]


def choose_regions(detections: Detections, unit: AdetailerUnit, image_size: tuple[int, int], canvas: Canvas) -> Found:
    """Ratio filter, top k, order, mask shape, then the crops: ADetailer's order. Detections are numbered as found, the surest is 1."""
    numbers = {tuple(box): number for number, box in enumerate(detections.boxes, start=1)}
    skipped: list[str] = []

    def explain(before: Detections, after: Detections, reason: str) -> None:
        kept = {tuple(box) for box in after.boxes}
        skipped.extend(f"detection {numbers[tuple(box)]}: {reason}" for box in before.boxes if tuple(box) not in kept)

    small = filter_by_ratio(detections, unit.mask_min_ratio, 1, image_size)
    explain(detections, small, f"covers less of the picture than ad_mask_min_ratio, {unit.mask_min_ratio:g}")
    fitting = filter_by_ratio(small, 0, unit.mask_max_ratio, image_size)
    explain(small, fitting, f"covers more of the picture than ad_mask_max_ratio, {unit.mask_max_ratio:g}")
    kept = keep_largest(fitting, unit.mask_k, unit.mask_filter_method)
    explain(fitting, kept, f"not among the first {unit.mask_k} by {unit.mask_filter_method} (ad_mask_k)")
    kept = sort_detections(kept, SORT_ORDERS[unit.bbox_sortby], image_size)
    shaped = preprocess_detections(kept, unit.dilate_erode, unit.x_offset, unit.y_offset)
    explain(kept, shaped, "nothing is left of its mask after offset and erosion")
    merged = preprocess_detections(shaped, merge_invert=unit.mask_merge_invert)
    cut = [_region(mask, image_size, unit, canvas) for mask in merged.masks]
    for box, region in zip(merged.boxes, cut, strict=True):
        if region is None:
            skipped.append(f"detection {numbers.get(tuple(box), 'of all, merged')}: nothing is left of its mask after the blur")
    return Found(tuple(region for region in cut if region), tuple(skipped))


def _region(mask: Mask, image_size: tuple[int, int], unit: AdetailerUnit, canvas: Canvas) -> Region | None:
    blurred = blur_mask(mask, unit.mask_blur)
    wanted = (unit.inpaint_width, unit.inpaint_height) if unit.use_inpaint_width_height else (canvas.native, canvas.native)
    target = canvas.fitted(*wanted)
    if not unit.inpaint_only_masked:
        size = target if unit.use_inpaint_width_height else canvas.fitted(*image_size)
        return Region((0, 0, *image_size), blurred, size) if np.any(blurred) else None
    box = crop_region(blurred, unit.inpaint_only_masked_padding)
    return Region(expand_crop_region(box, *target, *image_size), blurred, target) if box else None
