"""The input mask at the size of the picture: which pixels may change, and the region that is drawn for it.

What the mask keeps stays to the byte, so the drawn part goes over into the rest inside of the mask.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from modules.detection.detections import Mask
from modules.diffusion.canvas import ASPECT_RATIOS, Canvas
from modules.diffusion.inpaint_mask import FEATHER, inpaint_mask
from modules.inpainting.crops import crop_region, expand_crop_region
from modules.inpainting.region import Region
from modules.request.image_modes import HALF
from modules.request.image_request import ImageRequest
from modules.request.outpaint import OVERLAP


def changeable(request: ImageRequest, size: tuple[int, int]) -> Mask | None:
    """How far every pixel of a picture of this size (width, height) may change: H x W, 0 where it stays; None without
    a mask."""
    if request.mask is None:
        return None
    if not request.keeps_image:
        return np.asarray(inpaint_mask(request.mask, size))
    return feathered(at_size(request.mask, size), OVERLAP if request.outpaint else FEATHER)


def at_size(mask: Image.Image, size: tuple[int, int]) -> Mask:
    """The mask (L) at another size, H x W: 0 where it keeps the picture."""
    pixels = np.asarray(mask.resize(size, Image.Resampling.BILINEAR))
    return np.where(pixels > HALF, pixels, 0).astype(np.uint8)


def feathered(mask: Mask, feather: int) -> Mask:
    """The mask, rising from its edge to its full value over ``feather`` pixels inside of it. A part that is too thin
    for that rises to its middle."""
    import cv2

    # the picture's border is no edge: what is painted goes on beyond it
    framed = cv2.copyMakeBorder((mask > 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    depth = np.minimum(cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1], feather)
    deepest = cv2.dilate(depth, np.ones((2 * feather + 1, 2 * feather + 1), np.uint8))
    return np.asarray((mask * (depth / np.maximum(deepest, 1))).round(), np.uint8)


def masked_region(request: ImageRequest, image: Image.Image, canvas: Canvas) -> tuple[Region, Region]:
    """What is cut out of the image, drawn at the model's native size and put back: the region with the mask that is
    drawn, and the same with the mask that it is put back through.

    The crop is that of the WebUI's "Only masked": the box around the mask with ``inpaint_only_masked_padding`` around
    it. It is drawn in the nearest shape that models draw well.
    """
    assert request.mask is not None
    mask = at_size(request.mask, image.size)
    box = crop_region(mask, request.inpaint_only_masked_padding)
    assert box is not None  # the parser refuses a mask that paints nothing
    size = _drawn_size(box[2] - box[0], box[3] - box[1], request.megapixels, canvas)
    drawn = Region(expand_crop_region(box, *size, *image.size), mask, size)
    pasted = changeable(request, image.size)
    assert pasted is not None
    return drawn, replace(drawn, mask=pasted)


def _drawn_size(width: int, height: int, megapixels: str, canvas: Canvas) -> tuple[int, int]:
    """The size for a crop: in its shape, or in the usual shape that is nearest to a longer one."""
    usual = [across / down for across, down in ASPECT_RATIOS.values()]
    return canvas.size_near(max(width, round(height * min(usual))), max(height, round(width / max(usual))), megapixels)
