"""Every kind of pixels that Pillow reads -> 8-bit sRGB, or 8-bit grey for a mask.

Grey of more than 8 bits is scaled and never clipped:

| pixels | black | white |
|---|---|---|
| 16 bits | 0 | 65535; of a TIFF with fewer or signed bits, the most that they hold |
| 32 bits or floating point | 0 | 1, 255, 65535, or the most of 32 bits: the first that no value exceeds |
| the same, where that leaves it nearly black | 0 | the greatest value |
| the same, where a value is negative | the least value | the greatest value |
"""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from modules.request.original import BACKGROUND, Original

logger = logging.getLogger(__name__)

MASK_BACKGROUND = "black"
"""What a transparent mask is put on: black stays."""

HALF = 127
"""Of 255: what is brighter in a mask is repainted."""

_WHITE_POINTS = {"F": (1, 255, 65535), "I": (1, 255, 65535, 2**31 - 1, 2**32 - 1)}
_NEARLY_BLACK = 1 / 16
_COLOUR_GAIN = 4
"""How much the colour of a mask counts beside its brightness; a stroke of any clear colour becomes white."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""The colour space that a profile must have, by mode."""
_SAME = 2
"""Of 255: a profile that changes no colour by more is sRGB as another program writes it, and is not applied."""


def to_rgb(image: Image.Image, profile: bytes, field: str) -> Image.Image:
    """8-bit sRGB, with transparency flattened onto ``BACKGROUND``.

    ``profile`` is the ICC profile of the pixels. One that is damaged, or of another colour space, is not applied, with
    a warning that names the ``field``.
    """
    return to_original(image, profile, field).image


def to_original(image: Image.Image, profile: bytes, field: str) -> Original:
    """:func:`to_rgb`, and the pixels before it, where 8-bit RGB can have them."""
    opacity, colours = _alpha(image), _eight_bits(image)
    if image.mode.startswith("I;16"):
        _tell_nearly_black(colours, field)
    srgb, is_converted = _srgb(colours, profile, field)
    own = profile if is_converted and colours.mode == "RGB" else b""
    flat = srgb
    if opacity is not None:
        if opacity.getextrema() == (0, 0):
            logger.warning("%s: is transparent everywhere, so nothing of it is seen", field)
        flat = Image.composite(srgb, Image.new("RGB", image.size, BACKGROUND), opacity)
    return Original(_bare(flat), _bare(colours if own else srgb), own, opacity and _bare(opacity))


def _bare(image: Image.Image) -> Image.Image:
    """The pixels without the remarks of the file, which Pillow would write into the next file."""
    image.info.clear()
    return image


def to_mask(image: Image.Image) -> Image.Image:
    """8-bit grey, with transparency flattened onto ``MASK_BACKGROUND``; colour profiles do not count.

    Where the mask is transparent, or holds no white, strokes of a clear colour count as white.
    """
    alpha, colours = _alpha(image), _eight_bits(image)
    grey = colours.convert("L")
    if alpha is None and (colours.mode == "L" or (np.asarray(grey) > HALF).any()):
        return grey
    if alpha is not None:
        colours = Image.composite(colours.convert("RGB"), Image.new("RGB", image.size, MASK_BACKGROUND), alpha)
    bands = np.asarray(colours.convert("RGB"), np.int16)
    brightest = bands.max(axis=2)
    strokes = np.maximum(brightest, _COLOUR_GAIN * (brightest - bands.min(axis=2)))
    return Image.fromarray(strokes.clip(0, 255).astype(np.uint8))


def transparency(image: Image.Image) -> Image.Image:
    """8-bit grey: white where the picture is transparent, black where it is opaque."""
    alpha = _alpha(image)
    return Image.new("L", image.size) if alpha is None else ImageOps.invert(alpha)


def _alpha(image: Image.Image) -> Image.Image | None:
    """The opacity, L; None for an opaque picture. A BMP without any opacity means that nobody has set it."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # a 16-bit PNG names one transparent value
        alpha = Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    else:
        alpha = image.convert("RGBA").getchannel("A")
    least, most = alpha.getextrema()
    return None if least == 255 or (most == 0 and image.format == "BMP") else alpha


def _eight_bits(image: Image.Image) -> Image.Image:
    """The colours as L, RGB, CMYK or LAB, without transparency."""
    if image.mode == "F" or image.mode.startswith("I") or (image.mode == "L" and _sample_format(image) == _SIGNED):
        return _scaled(image)
    if image.mode in ("RGBa", "La"):  # premultiplied; the colours are divided by the opacity
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow warns of what a palette would lose otherwise
    if image.mode in _SPACES:
        return image
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point as L, by the table of this module."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, signed = tags.get(_BITS_PER_SAMPLE, (16,))[0], _sample_format(image) == _SIGNED
    values = np.asarray(image)
    if image.mode == "I" and bits == 32 and not signed:
        values = values.view(np.uint32)  # Pillow has signed ones only
    elif image.mode == "L":
        values = values.view(np.int8)  # and bytes without a sign
    values = values.astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=values.max(where=np.isfinite(values), initial=1.0), neginf=0.0)
    least, greatest = float(values.min()), float(values.max())
    if bits < 32 and image.mode != "F" and least >= 0:
        black, white = 0.0, 2.0 ** (min(bits, 16) - signed) - 1
    else:
        black, white = _range(image.mode, least, greatest)
    grey = Image.fromarray(((values - black) * (255 / (white - black))).round().clip(0, 255).astype(np.uint8))
    return ImageOps.invert(grey) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _sample_format(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0])


def _tell_nearly_black(grey: Image.Image, field: str) -> None:
    _, brightest = grey.getextrema()
    if isinstance(brightest, int) and brightest < 255 * _NEARLY_BLACK:
        logger.warning("%s: is nearly black; if its 16 bits hold fewer, save it with 8 bits", field)


def _range(mode: str, least: float, greatest: float) -> tuple[float, float]:
    """The values of black and white for 32-bit and floating-point grey."""
    if least >= 0:
        white = next((one for one in _WHITE_POINTS[mode] if greatest <= one), greatest)
        return 0.0, white if white <= 1 or greatest > white * _NEARLY_BLACK else greatest
    return least, max(greatest, least + 1)


def _srgb(image: Image.Image, profile: bytes, field: str) -> tuple[Image.Image, bool]:
    """The colours in sRGB, and whether the profile says that they were in another space."""
    if not profile:
        return image.convert("RGB"), False
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = given.profile.xcolor_space.strip()
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        if _SPACES[image.mode] == space:
            transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), image.mode, "RGB")
            if _changes_nothing(transform, image.mode):
                return image.convert("RGB"), False
            return _applied(transform, image), True
        problem = f"is for {space}, not for {_SPACES[image.mode]}"
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        problem = "is damaged"
    logger.warning("%s: its colour profile %s; its colours are taken as sRGB", field, problem)
    return image.convert("RGB"), False


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode not in ("L", "RGB"):
        return False
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), axis=-1).reshape(1, -1, len(mode))
    before = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
    changed = np.asarray(_applied(transform, before), np.int16) - np.asarray(before.convert("RGB"), np.int16)
    return bool(np.abs(changed).max() <= _SAME)


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # it is None only for a transform in place
    return result
