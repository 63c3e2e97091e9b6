"""The crops of the detail pass: "inpaint only masked", as the WebUI does it (AUTOMATIC1111, ``modules/masking.py``).

Blur the mask; cut a box around what it covers, with some padding; grow one side to the ratio of the size that is
painted at; paint; put the result back through the blurred mask. A box is left, top, right, bottom in whole pixels, as
PIL has it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from modules.detection.detections import Mask, bounding_box

Box = tuple[int, int, int, int]


def blur_mask(mask: Mask, blur: float) -> Mask:
    """A Gaussian blur with a spread of ``blur`` pixels; 0 leaves the mask as it is. H x W, then 0 to 255.

    One axis after the other, rounded to bytes in between, so that the values are the WebUI's.
    """
    import cv2

    if blur == 0:
        return mask
    size = 2 * int(2.5 * blur + 0.5) + 1
    across = cv2.GaussianBlur(mask, (size, 1), blur)
    return np.asarray(cv2.GaussianBlur(across, (1, size), blur), np.uint8)


def crop_region(mask: Mask, padding: int) -> Box | None:
    """The box around the mask's pixels that are not 0, ``padding`` pixels larger on each side, inside the image.

    None for a blank mask. A mask of a few pixels becomes blank when it is blurred widely, so a caller has to expect
    that.
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
    """Grows one side of the box to the ratio of the target size, half on either end, moved back into the image.

    The given box lies inside the returned one. Where the image is too small for the ratio, the side ends at its edges.
    """
    left, top, right, bottom = box
    ratio = target_width / target_height
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grow(top, bottom, int((right - left) / ratio), image_height)
    else:
        left, right = _grow(left, right, int((bottom - top) * ratio), image_width)
    return left, top, right, bottom


def _grow(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    low = max(min(low - (length - (high - low)) // 2, limit - length), 0)
    return low, min(low + length, limit)


def correct_colors(painted: Image.Image, before: Image.Image, mask: Image.Image) -> Image.Image:
    """The repainted crop without the shift of colour that its unmasked part shows.

    There nothing was to change, so what differs on the average is the model's doing, and it is taken off everywhere.
    All three pictures have one size; where less than a hundredth of the mask (L) is black there is nothing to go by,
    and the crop stays as it is.
    """
    untouched = np.asarray(mask) == 0
    if untouched.mean() < 0.01:
        return painted
    pixels = np.asarray(painted, np.float32)
    shift = (np.asarray(before, np.float32) - pixels)[untouched].mean(axis=0)
    return Image.fromarray((pixels + shift).round().clip(0, 255).astype(np.uint8))


def composite(original: Image.Image, repainted_crop: Image.Image, box: Box, blurred_mask: Mask) -> Image.Image:
    """The original with the repainted crop put back at its box, through the blurred mask. The original is not changed.

    Pixels outside the box, or where the mask is 0, are the original's bytes; where it is 255 they are the crop's.

    Args:
        original: The whole image, RGB.
        repainted_crop: The crop's new content; resized to the box (Lanczos) where it was painted at another size.
        box: Where the crop was taken.
        blurred_mask: H x W of the original, 0 to 255, from :func:`blur_mask`.
    """
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    crop = repainted_crop if repainted_crop.size == size else repainted_crop.resize(size, Image.Resampling.LANCZOS)
    result = original.copy()
    result.paste(crop, box, Image.fromarray(blurred_mask[top:bottom, left:right]))
    return result
