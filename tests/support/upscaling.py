"""Pictures to upscale, and how far two results differ."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

UNTILED = 10_000


@cache
def picture(width: int, height: int) -> Image.Image:
    """Noise, soft in one half and hard in the other: the worst case for a seam."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    soft = Image.fromarray(noise).reduce(5).resize((width, height), Image.Resampling.BICUBIC)
    soft.paste(Image.fromarray(noise[:, width // 2 :]), (width // 2, 0))
    return soft


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())
