"""Pictures as people bring them, by kind: what each file must give, through the requests that use it.

Every kind has several members; a file that is not among them has to give the same.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO,
    drawing,
    exif_block,
    file_of,
    grey,
    heic,
    in_space,
    jpeg_with,
    png_with,
    profile,
    tiff_of,
)
from support.read_images import read
from support.refusals import refusal

Write = Callable[[], bytes]
EXACT, ONE, NEAR = 0.0, 1.0, 3.0
"""The greatest difference of 255, or of a lossy file the difference in the mean."""
GREY = np.stack([grey()] * 3, axis=-1)
DRAWING = np.asarray(drawing())
OPACITY = np.tile(np.where(np.arange(96) < 48, 255, 0).astype(np.uint8), (64, 1))
HALF_ON_WHITE = np.where(OPACITY[..., None] == 255, DRAWING, 255)


def half_transparent(hidden: tuple[int, int, int], kind: str = "PNG", mode: str = "RGBA", **options: object) -> bytes:
    image = Image.composite(drawing(), Image.new("RGB", drawing().size, hidden), Image.fromarray(OPACITY))
    image.putalpha(Image.fromarray(OPACITY))
    return file_of(image.convert(mode), kind, **options)


def jpeg(turned: int = 1, more: bytes = b"") -> bytes:
    return jpeg_with(0xE1, exif_block(turned, more=more))


def gps(altitude: bytes) -> bytes:
    """EXIF of a picture turned by a quarter, with a directory of places that holds one altitude."""
    head = b"II*\0" + struct.pack("<IH", 8, 2)
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    place = struct.pack("<HHII", 0x8825, 4, 1, 38)
    return b"Exif\0\0" + head + turned + place + bytes(4) + struct.pack("<H", 1) + altitude + bytes(4)


def strokes(colour: str, mode: str = "RGBA") -> Image.Image:
    image = Image.new("RGBA", (96, 64))
    image.paste(colour, (20, 10, 50, 40))
    return image.convert(mode)


PLAIN_JPEG = "the plain jpg"
"""Stands for what the reader makes of the drawing as JPEG."""
KINDS: Mapping[str, tuple[Mapping[str, Write], np.ndarray | str, float]] = {
    "grey of more than 8 bits": (
        {
            "16-bit PNG": lambda: file_of(Image.fromarray((grey() * 257).astype(np.uint16))),
            "16-bit TIFF with a sign": lambda: tiff_of(grey() * 32767 / 255, "<i2", 16, 2),
            "8-bit TIFF with a sign": lambda: tiff_of(grey() * 127 / 255, "<i1", 8, 2),
            "32-bit TIFF": lambda: tiff_of(grey() / 255 * (2**32 - 1), "<u4", 32, 1),
            "floating point": lambda: tiff_of(grey() / 255, "<f4", 32, 3),
        },
        GREY, 2 * ONE,
    ),
    "hidden colours": (
        {
            "magenta": lambda: half_transparent((255, 0, 255)),
            "black": lambda: half_transparent((0, 0, 0)),
            "yellow, WebP": lambda: half_transparent((255, 255, 0), "WEBP", lossless=True, exact=True),
            "green, TIFF": lambda: half_transparent((0, 255, 0), "TIFF"),
        },
        HALF_ON_WHITE, EXACT,
    ),
    "profiles": (
        {
            "Adobe RGB": lambda: file_of(
                in_space(drawing(), ADOBE_RGB, 2.2), "JPEG", quality=95, icc_profile=profile(ADOBE_RGB, 2.2)
            ),
            "Display P3": lambda: heic(in_space(drawing(), DISPLAY_P3, 2.2), icc_profile=profile(DISPLAY_P3, 2.2)),
            "ProPhoto": lambda: file_of(in_space(drawing(), PROPHOTO, 1.8), icc_profile=profile(PROPHOTO, 1.8)),
        },
        DRAWING, NEAR,
    ),
    "notes beside good pixels": (
        {
            "a megabyte of text": lambda: png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
            "text with a wrong checksum": lambda: png_with(b"tEXt", b"k\0wrong").replace(b"k\0wrong", b"k\0right"),
            "damaged EXIF": lambda: png_with(b"eXIf", b"II*\0\x08\0\0\0\xff\xff\0\x01"),
            "no end marker": lambda: file_of(drawing())[:-12],
            "EXIF of WebP cut off": lambda: file_of(drawing(), "WEBP", lossless=True, exif=exif_block(1, more=bytes(99)))[:-50],
        },
        DRAWING, EXACT,
    ),
    "a jpg without its end": (
        {
            "no marker": lambda: jpeg()[:-2],
            "half a marker": lambda: jpeg()[:-1],
            "an end, and more": lambda: jpeg() + b"\xff\xd8\xff\xe1" * 9,
        },
        PLAIN_JPEG, EXACT,
    ),
    "turned": (
        {
            "a negative altitude": lambda: jpeg_with(0xE1, gps(struct.pack("<HHIi", 6, 4, 1, -5))),
            "an altitude that is text": lambda: jpeg_with(0xE1, gps(struct.pack("<HHI4s", 6, 2, 4, b"high"))),
            "a place beyond the file": lambda: jpeg_with(0xE1, gps(struct.pack("<HHII", 2, 5, 2**31, 2**32 - 1))),
            "plain": lambda: jpeg(6),
        },
        "the plain jpg, turned", EXACT,
    ),
}  # fmt: skip
MASKS: Mapping[str, Write] = {
    "white on transparency": lambda: file_of(strokes("white")),
    "red on transparency": lambda: file_of(strokes("red")),
    "dark blue, TIFF": lambda: file_of(strokes("#000090"), "TIFF"),
    "green, GIF": lambda: file_of(strokes("lime"), "GIF"),
    "white on black": lambda: file_of(strokes("white", "RGB")),
    "white on opaque blue": lambda: file_of(Image.alpha_composite(Image.new("RGBA", (96, 64), "blue"), strokes("white"))),
    "16 bits": lambda: file_of(Image.fromarray(np.asarray(strokes("white", "L")).astype(np.uint16) * 257)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "member"), [(kind, member) for kind in KINDS for member in KINDS[kind][0]])
def test_every_member_of_a_kind_gives_the_same_picture(tmp_path: Path, kind: str, member: str) -> None:
    members, wanted, tolerance = KINDS[kind]
    plain = read(tmp_path, file_of(drawing(), "JPEG", quality=95))
    if isinstance(wanted, str):
        wanted = plain if wanted == PLAIN_JPEG else np.rot90(plain, -1)
    difference = np.abs(read(tmp_path, members[member]()) - wanted.astype(int))
    assert (difference.mean() if tolerance == NEAR else difference.max()) <= tolerance


@pytest.mark.parametrize("member", MASKS)
def test_every_mask_repaints_the_strokes(tmp_path: Path, member: str) -> None:
    wanted = np.zeros((64, 96), bool)
    wanted[10:40, 20:50] = True
    assert ((read(tmp_path, MASKS[member](), mask=True) > 127) == wanted).all()


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda: tiff_of(grey(), "<f8", 64, 3), "image: is not an image that can be read"),
        (lambda: tiff_of(grey(), "<u1", 8, 1, tag_254=1), "image: holds only a preview, as the raw files of cameras do"),
        (lambda: tiff_of(grey(), "<u1", 8, 1, tag_50706=1025), "image: holds only a preview, as the raw files of cameras do"),
        (lambda: tiff_of(grey(), "<u1", 8, 1, tag_255=2), "image: holds only a preview, as the raw files of cameras do"),
        (lambda: file_of(drawing(), "PPM"), "image: is not an image that can be read"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrong_is_refused_in_one_line(tmp_path: Path, write: Write, told: str) -> None:
    assert told in refusal(lambda: read(tmp_path, write()))
