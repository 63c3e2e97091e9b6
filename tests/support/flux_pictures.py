"""A picture that is not one of ours, and pixels that can be subtracted."""

from __future__ import annotations

import numpy as np
from PIL import Image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


def picture() -> Image.Image:
    """A smooth picture that is not one of ours."""
    y, x = np.mgrid[0:256, 0:256]
    return Image.fromarray(np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8))
