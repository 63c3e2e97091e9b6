"""Draws onto a picture what a unit found in it, and what of that it repaints."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from modules.adetailer.regions import Found

FOUND, PAINTED, CROP = (66, 135, 245), (40, 170, 70), (235, 175, 30)
TINT = 0.4


def draw_found(image: Image.Image, found: Found) -> Image.Image:
    """A copy of the picture: in blue every detection's mask, box, number and confidence; in green the mask of every
    region that is repainted, after offset, dilation and blur; in yellow the region's crop and number. Blue without
    green was skipped."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    shades = [(mask, FOUND) for mask in found.detections.masks] + [(region.mask, PAINTED) for region in found.regions]
    for mask, colour in shades:
        share = TINT * mask[..., None].astype(np.float32) / 255
        pixels = pixels * (1 - share) + np.array(colour, np.float32) * share
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    width = max(1, round(max(image.size) / 256))
    for number, (box, confidence) in enumerate(zip(found.detections.boxes, found.detections.confidences), start=1):
        _label(draw, tuple(float(side) for side in box), f"{number}: {confidence:.2f}", FOUND, width)
    for region in found.regions:
        left, top, right, bottom = region.box
        _label(draw, (left, top, right - 1, bottom - 1), f"region {region.number}", CROP, width)
    return drawn


def _label(
    draw: ImageDraw.ImageDraw, box: tuple[float, ...], text: str, colour: tuple[int, int, int], width: int
) -> None:
    draw.rectangle(box, outline=colour, width=width)
    at = (box[0] + 2 * width, box[1] + width)
    draw.text(at, text, fill=colour, font_size=10 * width, stroke_width=width, stroke_fill="white")
