"""Reads a picture or a mask that came with a request: whatever its file is like, 8-bit sRGB or 8-bit grey, upright.

The steps: check the file's size, keep what decides the pixels (``image_file.py``), check the shape from the header,
decode, convert (``image_modes.py``), turn. Nothing here needs torch.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from backend.core.errors import InputError
from modules.diffusion.canvas import MAX_ASPECT_RATIO
from modules.request.image_file import (
    ImageFile,
    completed_png,
    encoding_of_heif,
    is_heic,
    orientation,
    relevant_parts,
)
from modules.request.image_modes import to_mask, to_original, to_rgb, transparency
from modules.request.original import Original
from modules.request.tiff_pages import is_misread, show_picture
from modules.request.uploads import MAX_BYTES, TOO_LARGE

logger = logging.getLogger(__name__)

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
HEIC = "pillow_heif"
"""The package that reads HEIC, where it is installed."""
MAX_PIXELS = 40_000_000
MAX_MISSING = 0.1
"""The share of its rows that a file which ends early may lack."""

_UNREADABLE = (
    UnidentifiedImageError, OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError,
    AssertionError, AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's and libheif's readers raise for damaged files, found by changing their bytes."""
_JPEG_FILL = 128
"""The grey that libjpeg puts in place of what is missing."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""
_UPRIGHT = 1
Result = TypeVar("Result")
Convert = Callable[[Image.Image, bytes, int], Result]


def read_image(path: Path, field: str) -> Image.Image:
    """A picture given as an input: RGB, 8 bits, sRGB, upright, transparency on white, of an animation the first frame.

    It must be in one of ``IMAGE_FORMATS`` (or HEIC, with pillow-heif), whatever its name says. Its size and shape are
    read from the header, before anything is decoded. Raises :class:`InputError`, which names the field and never the
    file's path or content.
    """
    return _read(path, field, lambda image, profile, turn: _turned(to_rgb(image, profile, field), turn))


def read_original(path: Path, field: str) -> Original:
    """The same with what its file has beside: the pixels before they became sRGB, and transparency."""

    def convert(image: Image.Image, profile: bytes, turn: int) -> Original:
        original = to_original(image, profile, field)
        return original.turned(_TURNS[turn]) if turn in _TURNS else original

    return _read(path, field, convert)


def read_mask(path: Path, field: str) -> Image.Image:
    """The same for a mask: L, white where the picture may change, transparency on black."""
    return _read(path, field, lambda image, profile, turn: _turned(to_mask(image), turn))


def read_transparency(path: Path, field: str) -> Image.Image:
    """How transparent a picture given as an input is: L, white where nothing of it is seen, black for an opaque one."""
    return _read(path, field, lambda image, profile, turn: _turned(transparency(image), turn))


def _read(path: Path, field: str, convert: Convert[Result]) -> Result:
    """What ``convert`` makes of the picture, its ICC profile and its orientation."""
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)  # a device may have no end
        if len(content) > MAX_BYTES:
            raise InputError(field, TOO_LARGE)
        if is_heic(content):
            return _read_heic(content, field, convert)
        file = relevant_parts(content)
        _tell_encoding(file.encoding, field)
        with warnings.catch_warnings(action="ignore"), _open(file.content, field) as image:  # those of Pillow
            turn = orientation(file.exif or image.info.get("exif", b""))
            profile = file.profile or image.info.get("icc_profile") or b""
            return convert(_loaded(image, file, field), profile, turn)
    except Image.DecompressionBombError:
        raise _too_large(field) from None
    except FileNotFoundError:
        raise InputError(field, f"there is no file '{path.name}'") from None
    except _UNREADABLE:
        raise InputError(field, f"is not an image that can be read; give one of {', '.join(IMAGE_FORMATS)}") from None


def _open(content: bytes, field: str) -> Image.Image:
    image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    if not show_picture(image):
        raise InputError(field, "holds only a preview, as the raw files of cameras do; export it as JPEG or PNG")
    check_shape(image.size, field)
    if is_misread(image):
        raise InputError(
            field, "is a rare kind of TIFF that cannot be read; save it as PNG, or as TIFF with usual options"
        )
    return image


def _tell_encoding(encoding: str, field: str) -> None:
    if encoding:
        logger.warning("%s: has %s, which is not converted; its colours are taken as sRGB", field, encoding)


def check_shape(size: tuple[int, int], field: str) -> None:
    """Raises :class:`InputError` for a size, width and height, that no picture may have."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(field, f"{width}x{height}; ")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise InputError(
            field,
            f"is {width}x{height}; its longer side may be at most {MAX_ASPECT_RATIO} times the shorter one, crop it",
        )


def _too_large(field: str, size: str = "too large; ") -> InputError:
    return InputError(field, f"is {size}at most {MAX_PIXELS // 1_000_000} megapixels are accepted, make it smaller")


def _loaded(image: Image.Image, file: ImageFile, field: str) -> Image.Image:
    """The decoded picture. Where its file ends early, nearly all of its rows must be there."""
    missing = 0.0
    try:
        image.load()
    except OSError:
        if image.format != "PNG":
            raise
        content, missing = completed_png(file.content)
        image = Image.open(io.BytesIO(content), formats=("PNG",))
        image.load()
    if image.format == "JPEG" and file.cut:
        missing = _grey_rows(image)
    if missing > MAX_MISSING:
        raise InputError(field, f"is cut off: {missing:.0%} of it is missing; save or send it again")
    if missing:
        logger.warning("%s: the file is cut off; %.2g%% of the picture is missing", field, 100 * missing)
    return image


def _grey_rows(image: Image.Image) -> float:
    """The share of rows at the lower edge that end in the grey that stands for missing pixels."""
    ends = np.asarray(image).reshape(image.height, image.width, -1)[:, -1]
    there = np.flatnonzero((ends != _JPEG_FILL).any(axis=1))
    return 1 - (int(there[-1]) + 1 if len(there) else 0) / image.height


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _read_heic(content: bytes, field: str, convert: Convert[Result]) -> Result:
    if find_spec(HEIC) is None:
        raise InputError(
            field,
            "is a HEIC picture, which needs the package pillow-heif; install it (pip install pillow-heif), or save the "
            "picture as JPEG or PNG",
        )
    import pillow_heif

    opened = pillow_heif.open_heif(io.BytesIO(content))  # its pictures are upright
    check_shape(opened.size, field)
    _tell_encoding(encoding_of_heif(content), field)
    return convert(opened.to_pillow(), opened.info.get("icc_profile") or b"", _UPRIGHT)
