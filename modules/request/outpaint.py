"""Outpainting: a larger canvas around an image, its fill, and the mask of what is painted."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from backend.core.errors import InputError, nearest
from backend.core.texts import shortened
from modules.request.original import Original

SIDES = ("left", "right", "top", "bottom")
MAX_MARGIN = 4096
"""Pixels that one side may get."""
OVERLAP = 32
"""Pixels of the image along a new part that are painted too, to blend one into the other; at most an eighth of it."""
_FORM = 'write sides with their pixels, as in "left=128 right=128"'
_BLUR = 16
"""Pixels by which the fill is blurred, so that nothing in it looks like a mirrored thing."""


@dataclass(frozen=True)
class Margins:
    """Pixels that an image gets on each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def __str__(self) -> str:
        return " ".join(f"{side}={pixels}" for side in SIDES if (pixels := getattr(self, side)))

    def canvas_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the canvas around an image of this size."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom

    def put(self, image: Image.Image, on: Image.Image) -> Image.Image:
        """The canvas ``on`` with the image in its place."""
        on.paste(image, (self.left, self.top))
        return on

    def extended(self, original: Original) -> Original:
        """The image on the canvas. What is new is opaque and shows the image mirrored and blurred."""

        def filled(image: Image.Image) -> Image.Image:
            around = ((self.top, self.bottom), (self.left, self.right), (0, 0))
            mirrored = Image.fromarray(np.pad(np.asarray(image), around, "symmetric"))
            return self.put(image, mirrored.filter(ImageFilter.GaussianBlur(_BLUR)))

        image, opacity = filled(original.image), original.opacity
        colours = image if original.colours is original.image else filled(original.colours)
        if opacity:
            opacity = self.put(opacity, Image.new("L", image.size, "white"))
        return Original(image, colours, original.profile, opacity)

    def mask(self, size: tuple[int, int], own: Image.Image | None = None) -> Image.Image:
        """White where the canvas around an image of this size is painted: in the new part, ``OVERLAP`` pixels of the
        image, and where ``own``, a mask of the image, is white."""
        width, height = size
        across, down = (min(OVERLAP, side // 8) for side in size)
        kept = (
            across if self.left else 0,
            down if self.top else 0,
            width - (across if self.right else 0),
            height - (down if self.bottom else 0),
        )
        of_image = Image.new("L", size, "white")
        of_image.paste(own.resize(size, Image.Resampling.BILINEAR).crop(kept) if own else 0, kept)
        return self.put(of_image, Image.new("L", self.canvas_size(size), "white"))


def read_margins(text: str) -> Margins | None:
    """The margins of a text such as "left=128 top=64"; None for an empty one. Raises :class:`InputError`."""
    words = text.replace(",", " ").split()
    margins: dict[str, int] = {}
    for word in words:
        side, equals, pixels = word.partition("=")
        if not equals or not re.fullmatch("[0-9]{1,6}", pixels):
            raise InputError("outpaint", f"'{shortened(word)}' is no side with its pixels; {_FORM}")
        if side not in SIDES:
            raise InputError("outpaint", f"'{shortened(side)}' is no side{nearest(side, SIDES)}; {_FORM}")
        if side in margins:
            raise InputError("outpaint", f"'{side}' is given twice; give every side once")
        if int(pixels) > MAX_MARGIN:
            raise InputError("outpaint", f"'{side}' is {pixels}; a side gets at most {MAX_MARGIN} pixels")
        margins[side] = int(pixels)
    if words and not any(margins.values()):
        raise InputError("outpaint", f"adds nothing; {_FORM}, or leave it empty")
    return Margins(**margins) if words else None
