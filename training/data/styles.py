"""Styles that a LoRA learns: how a drawn picture looks in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

PAPER, GRAPHITE = (250, 246, 236), (52, 52, 60)
DUSK, GLOW, SUN = (44, 18, 74), (226, 84, 64), (255, 226, 150)


def pencil(image: Image.Image) -> Image.Image:
    """Dark lines on paper where colours meet, and a light shading."""
    smooth = image.filter(ImageFilter.GaussianBlur(1))
    edges = [
        ImageChops.difference(channel.filter(ImageFilter.MaxFilter(3)), channel.filter(ImageFilter.MinFilter(3)))
        for channel in smooth.split()
    ]
    lines = np.minimum(255, 3.0 * np.max([np.asarray(edge) for edge in edges], axis=0))
    shading = 0.35 * (255 - np.asarray(ImageOps.grayscale(image), dtype=float))
    ink = Image.fromarray(np.minimum(255, np.maximum(lines, shading)).astype(np.uint8))
    return ImageOps.colorize(ImageOps.invert(ink), GRAPHITE, PAPER)


def sunset(image: Image.Image) -> Image.Image:
    """All colours by their brightness: from a violet dusk over red to the light of the sun."""
    return ImageOps.colorize(ImageOps.autocontrast(ImageOps.grayscale(image)), DUSK, SUN, GLOW)


STYLES: Mapping[str, Callable[[Image.Image], Image.Image]] = {"pencil": pencil, "sunset": sunset}
