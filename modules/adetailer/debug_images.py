"""Debug images: what a unit detected in a picture, and what of it is inpainted."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from modules.adetailer.regions import ChosenRegions

DETECTION, REGION, CROP = (66, 135, 245), (40, 170, 70), (235, 175, 30)
OPACITY = 0.4
"""Of the masks."""


def draw_regions(image: Image.Image, chosen: ChosenRegions) -> Image.Image:
    """A copy of the picture with every detection's mask, box, number and confidence in blue; with the mask of every
    region, after offset, dilation and blur, in green; and with the region's crop and number in yellow. Blue without
    green was skipped."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    masks = [(mask, DETECTION) for mask in chosen.detections.masks] + [(one.mask, REGION) for one in chosen.regions]
    for mask, colour in masks:
        share = OPACITY * mask[..., None].astype(np.float32) / 255
        pixels = pixels * (1 - share) + np.array(colour, np.float32) * share
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    width = max(1, round(max(image.size) / 256))
    for number, (box, confidence) in enumerate(zip(chosen.detections.boxes, chosen.detections.confidences), start=1):
        _label(draw, tuple(float(side) for side in box), f"{number}: {confidence:.2f}", DETECTION, width)
    for region in chosen.regions:
        left, top, right, bottom = region.box
        _label(draw, (left, top, right - 1, bottom - 1), f"region {region.number}", CROP, width)
    return drawn


def _label(
    draw: ImageDraw.ImageDraw, box: tuple[float, ...], text: str, colour: tuple[int, int, int], width: int
) -> None:
    draw.rectangle(box, outline=colour, width=width)
    at = (box[0] + 2 * width, box[1] + width)
    draw.text(at, text, fill=colour, font_size=10 * width, stroke_width=width, stroke_fill="white")
