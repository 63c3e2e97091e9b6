"""Crops for "inpaint only masked", as in the WebUI (AUTOMATIC1111, ``modules/masking.py``).

Blur the mask, crop around what it covers with some padding, expand one side to the aspect ratio of the inpainting size,
inpaint, and paste the result back through the blurred mask. A box is left, top, right, bottom in whole pixels, as in
PIL.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from modules.detection.detections import Mask, bounding_box

Box = tuple[int, int, int, int]


def blur_mask(mask: Mask, blur: float) -> Mask:
    """The mask (H x W) after a Gaussian blur with a standard deviation of ``blur`` pixels, 0 to 255.

    One axis after the other, rounded to bytes in between, so that the values are those of the WebUI.
    """
    import cv2

    if blur == 0:
        return mask
    size = 2 * int(2.5 * blur + 0.5) + 1
    across = cv2.GaussianBlur(mask, (size, 1), blur)
    return np.asarray(cv2.GaussianBlur(across, (1, size), blur), np.uint8)


def crop_region(mask: Mask, padding: int) -> Box | None:
    """The box around the mask's pixels that are not 0, ``padding`` pixels larger on each side, inside the image.

    None for a blank mask. A mask of a few pixels becomes blank when it is blurred widely, so callers must expect
    None.
    """
    box = bounding_box(mask)
    if box is None:
        return None
    height, width = mask.shape
    return (
        max(box[0] - padding, 0),
        max(box[1] - padding, 0),
        min(box[2] + padding, width),
        min(box[3] + padding, height),
    )


def expand_crop_region(box: Box, target_width: int, target_height: int, image_width: int, image_height: int) -> Box:
    """Expands one side of the box to the aspect ratio of the target size, by half at either end, moved back into the
    image.

    The given box lies inside the returned one. Where the image is too small for the ratio, the side ends at its edges.
    """
    left, top, right, bottom = box
    ratio = target_width / target_height
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _expand(top, bottom, int((right - left) / ratio), image_height)
    else:
        left, right = _expand(left, right, int((bottom - top) * ratio), image_width)
    return left, top, right, bottom


def _expand(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    low = max(min(low - (length - (high - low)) // 2, limit - length), 0)
    return low, min(low + length, limit)


def correct_colors(inpainted: Image.Image, before: Image.Image, mask: Image.Image) -> Image.Image:
    """The inpainted crop without its colour shift, which is measured where the mask (L) is black.

    There nothing was to change, so the mean difference comes from the model; it is subtracted everywhere. All three
    images have one size. When less than a hundredth of the mask is black, the crop is returned unchanged.
    """
    untouched = np.asarray(mask) == 0
    if untouched.mean() < 0.01:
        return inpainted
    pixels = np.asarray(inpainted, np.float32)
    shift = (np.asarray(before, np.float32) - pixels)[untouched].mean(axis=0)
    return Image.fromarray((pixels + shift).round().clip(0, 255).astype(np.uint8))


def composite(original: Image.Image, crop: Image.Image, box: Box, blurred_mask: Mask) -> Image.Image:
    """A copy of the original with the inpainted crop pasted at its box, through the blurred mask.

    Pixels outside the box, or where the mask is 0, are the original's bytes; where it is 255 they are the crop's.

    Args:
        original: The whole image, RGB.
        crop: The inpainted crop; resized to the box (Lanczos) where it has another size.
        box: Where the crop was taken.
        blurred_mask: H x W of the original, 0 to 255, from :func:`blur_mask`.
    """
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    if crop.size != size:
        crop = crop.resize(size, Image.Resampling.LANCZOS)
    result = original.copy()
    result.paste(crop, box, Image.fromarray(blurred_mask[top:bottom, left:right]))
    return result
