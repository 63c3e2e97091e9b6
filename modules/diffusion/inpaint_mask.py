"""The input mask: where a picture may change. What it keeps is the input's, to the byte, in every stage that draws
at its size."""

from __future__ import annotations

from PIL import Image, ImageFilter

FEATHER = 4
"""Pixels of the picture over which what was drawn goes over into what stays."""


def inpaint_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """White is drawn, black stays, at the picture's size. It is grown first, so that the feather lies outside of
    what was asked for."""
    whole = mask.resize(size, Image.Resampling.BILINEAR)
    return whole.filter(ImageFilter.MaxFilter(2 * FEATHER + 1)).filter(ImageFilter.GaussianBlur(FEATHER / 2))
