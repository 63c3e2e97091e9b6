"""A picture that came with a request: right whatever its file is like, or refused in one line that names the field."""

from __future__ import annotations

import logging
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO,
    cmyk_profile,
    drawing,
    exif_block,
    file_of,
    grey,
    grey_profile,
    heic,
    in_space,
    jpeg_with,
    png_header,
    png_with,
    premultiplied_tiff,
    profile,
    random_exif,
    srgb_profile,
    tiff_of,
)
from support.refusals import refusal

from backend.core.errors import InputError
from modules.request.input_image import IMAGE_FORMATS, MAX_PIXELS, read_image, read_mask

WHITE = 255
RAMP = np.linspace(0, 255, 96).round().astype(np.uint8)
"""The opacity of a transparent picture's columns."""

Write = Callable[[], bytes]


def read(tmp_path: Path, content: bytes, mask: bool = False) -> np.ndarray:
    """The pixels, H x W x 3, or H x W of a mask."""
    path = tmp_path / "given"  # no suffix: the content says what it is
    path.write_bytes(content)
    image = read_mask(path, "mask") if mask else read_image(path, "image")
    assert image.mode == ("L" if mask else "RGB")
    return np.asarray(image).astype(int)


def refused(tmp_path: Path, content: bytes) -> str:
    return refusal(lambda: read(tmp_path, content))


def as_rgb(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1).astype(int)


def on_white(image: Image.Image, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return np.asarray(image) * share + WHITE * (1 - share)


def transparent(image: Image.Image, hidden: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    """The picture, more opaque from left to right; what is fully transparent has the colour ``hidden``."""
    opacity = Image.fromarray(np.tile(RAMP, (image.height, 1)))
    shown = Image.composite(image, Image.new("RGB", image.size, hidden), opacity.point(lambda value: 255 * (value > 0)))
    shown.putalpha(opacity)
    return shown


def sixteen_bits(factor: float = 257) -> np.ndarray:
    return (grey() * factor).round()


def transparent_16_bit_grey() -> bytes:
    """The left half has the one value that tRNS calls transparent."""
    values = sixteen_bits().astype(np.uint16)
    values[:, :48] = 1234
    return png_with(b"tRNS", (1234).to_bytes(2, "big"), file_of(Image.fromarray(values)))


def palette_with_transparency() -> bytes:
    image = drawing().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return file_of(image, transparency=0)


GREY: dict[str, Write] = {
    "16 bits, PNG": lambda: file_of(Image.fromarray(sixteen_bits().astype(np.uint16))),
    "16 bits, TIFF": lambda: tiff_of(sixteen_bits(), "<u2", 16, 1),
    "16 bits, big-endian TIFF": lambda: file_of(
        Image.frombytes("I;16B", (96, 64), sixteen_bits().astype(">u2").tobytes()), "TIFF"
    ),
    "16 bits, white is zero": lambda: tiff_of(65535 - sixteen_bits(), "<u2", 16, 1, white_is_zero=True),
    "32 bits": lambda: tiff_of(grey() / 255 * (2**32 - 1), "<u4", 32, 1),
    "32 bits, signed": lambda: tiff_of(grey() / 255 * (2**31 - 1), "<i4", 32, 2),
    "32 bits that hold 16": lambda: tiff_of(sixteen_bits(), "<u4", 32, 1),
    "32 bits that hold 8": lambda: tiff_of(grey(), "<i4", 32, 2),
    "floating point from 0 to 1": lambda: tiff_of(grey() / 255, "<f4", 32, 3),
    "floating point from 0 to 255": lambda: tiff_of(grey(), "<f4", 32, 3),
    "floating point from 0 to 65535": lambda: tiff_of(sixteen_bits(), "<f4", 32, 3),
    "8 bits": lambda: file_of(drawing().convert("L")),
    "grey and opaque": lambda: file_of(drawing().convert("LA")),
    "CMYK's black alone": lambda: file_of(
        Image.merge("CMYK", [Image.new("L", (96, 64))] * 3 + [Image.fromarray((255 - grey()).astype(np.uint8))]), "TIFF"
    ),
}
COLOUR: dict[str, tuple[Write, float]] = {
    "PNG": (lambda: file_of(drawing()), 0),
    "interlaced PNG": (lambda: file_of(drawing(), interlace=1), 0),
    "BMP": (lambda: file_of(drawing(), "BMP"), 0),
    "TIFF": (lambda: file_of(drawing(), "TIFF"), 0),
    "compressed TIFF": (lambda: file_of(drawing(), "TIFF", compression="tiff_adobe_deflate"), 0),
    "lossless WebP": (lambda: file_of(drawing(), "WEBP", lossless=True), 0),
    "JPEG": (lambda: file_of(drawing(), "JPEG", quality=95), 4),
    "progressive JPEG": (lambda: file_of(drawing(), "JPEG", quality=95, progressive=True), 4),
    "AVIF": (lambda: file_of(drawing(), "AVIF", quality=95), 4),
    "HEIC": (lambda: heic(drawing()), 5),
    "GIF": (lambda: file_of(drawing(), "GIF"), 12),
    "YCbCr": (lambda: file_of(drawing().convert("YCbCr"), "TIFF"), 1),
    "Lab": (lambda: file_of(drawing().convert("LAB"), "TIFF"), 2),
    "CMYK TIFF": (lambda: file_of(drawing().convert("CMYK"), "TIFF"), 1),
    "CMYK JPEG": (lambda: file_of(drawing().convert("CMYK"), "JPEG", quality=95), 6),
    "palette": (lambda: file_of(drawing().quantize(256)), 12),
    "padded": (lambda: file_of(drawing().convert("RGBX"), "TIFF"), 0),
}
NOTES: dict[str, Write] = {
    "a megabyte of text": lambda: png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
    "text that is not compressed as it says": lambda: png_with(b"zTXt", b"Comment\0\0no zlib"),
    "international text of a wrong language": lambda: png_with(b"iTXt", b"a\0\1\0\xff\0\xff\0\xff"),
    "a damaged checksum of a text": lambda: png_with(b"tEXt", b"k\0wrong").replace(b"k\0wrong", b"k\0right"),
    "a date of a wrong length": lambda: png_with(b"tIME", b"\1"),
    "a resolution of a wrong length": lambda: png_with(b"pHYs", b"\0\0"),
    "an animation of no frames": lambda: png_with(b"acTL", bytes(8)),
    "EXIF of six bytes": lambda: png_with(b"eXIf", b"II*\0\1\0"),
    "EXIF that is no EXIF": lambda: png_with(b"eXIf", b"\0" * 40),
    "a damaged profile": lambda: png_with(b"iCCP", b"profile\0\0no zlib", before=b"IDAT"),
    "no end marker": lambda: file_of(drawing())[:-12],
    "half an end marker": lambda: file_of(drawing())[:-7],
    "something after the end": lambda: file_of(drawing()) + b"<script>" * 99,
    "no checksum of the pixels": lambda: file_of(drawing())[:-16],
}
JPEG_NOTES: dict[str, Write] = {
    "no end marker": lambda: file_of(drawing(), "JPEG", quality=95)[:-2],
    "half an end marker": lambda: file_of(drawing(), "JPEG", quality=95)[:-1],
    "something after the end": lambda: file_of(drawing(), "JPEG", quality=95) + b"\xff" * 99,
    "EXIF of six bytes": lambda: jpeg_with(0xE1, b"Exif\0\0MM"),
    "EXIF whose directory is elsewhere": lambda: jpeg_with(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "several pictures that are not there": lambda: jpeg_with(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "Photoshop's resources cut off": lambda: jpeg_with(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "part 2 of 1 of a profile": lambda: jpeg_with(0xE2, b"ICC_PROFILE\0\2\1broken"),
    "a comment that is no text": lambda: jpeg_with(0xFE, b"\xff\xfe\xfd"),
}
PROFILED: dict[str, tuple[Write, float]] = {
    "Adobe RGB": (lambda: file_of(in_space(drawing(), ADOBE_RGB, 2.2), icc_profile=profile(ADOBE_RGB, 2.2)), 1),
    "Display P3, JPEG": (
        lambda: file_of(
            in_space(drawing(), DISPLAY_P3, 2.2),
            "JPEG",
            quality=100,
            subsampling=0,
            icc_profile=profile(DISPLAY_P3, 2.2),
        ),
        1.5,
    ),
    "ProPhoto, TIFF": (
        lambda: file_of(in_space(drawing(), PROPHOTO, 1.8), "TIFF", icc_profile=profile(PROPHOTO, 1.8)),
        1,
    ),
    "Display P3, WebP": (
        lambda: file_of(
            in_space(drawing(), DISPLAY_P3, 2.2), "WEBP", lossless=True, icc_profile=profile(DISPLAY_P3, 2.2)
        ),
        1,
    ),
    "Display P3, HEIC": (
        lambda: heic(in_space(drawing(), DISPLAY_P3, 2.2), icc_profile=profile(DISPLAY_P3, 2.2)),
        3,
    ),
    "sRGB, to the byte": (lambda: file_of(drawing(), icc_profile=srgb_profile()), 0),
    "a damaged one": (lambda: file_of(drawing(), icc_profile=b"\0" * 200), 0),
    "one of CMYK beside RGB": (lambda: file_of(drawing(), icc_profile=cmyk_profile((50, 0, 0))), 0),
}


@pytest.mark.parametrize("kind", GREY)
def test_grey_of_any_depth_is_scaled_and_not_clipped(tmp_path: Path, kind: str) -> None:
    assert np.abs(read(tmp_path, GREY[kind]()) - as_rgb(grey())).max() <= 1
    assert np.abs(read(tmp_path, GREY[kind](), mask=True) - grey().astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("floating point beyond every usual range", np.linspace(0, 1e9, 64), np.linspace(0, 255, 64)),
        ("floating point of light", np.linspace(0, 3.7, 64), np.linspace(0, 255, 64)),
        ("floating point with negative values", np.linspace(-1, 1, 64), np.linspace(0, 255, 64)),
        ("12 bits in 32", np.linspace(0, 4095, 64), np.linspace(0, 255, 64)),
        ("not a number is black", np.where(np.arange(64) < 9, np.nan, 1.0), np.where(np.arange(64) < 9, 0, 255)),
        ("infinite is white", np.where(np.arange(64) < 9, np.inf, 0.5), np.where(np.arange(64) < 9, 255, 255)),
        ("one negative value everywhere", np.full(64, -3.0), np.zeros(64)),
    ],
)
def test_unusual_ranges_are_stretched(tmp_path: Path, kind: str, values: np.ndarray, wanted: np.ndarray) -> None:
    pixels = read(tmp_path, tiff_of(np.tile(values, (64, 1)), "<f4", 32, 3))
    if kind.startswith("infinite"):
        assert (pixels[0, :9] >= pixels[0, 9:][:9]).all()
    else:
        assert np.abs(pixels[0, :, 0] - wanted).max() <= 1


@pytest.mark.parametrize("kind", COLOUR)
def test_every_format_and_colour_space_becomes_rgb(tmp_path: Path, kind: str) -> None:
    write, tolerance = COLOUR[kind]
    difference = np.abs(read(tmp_path, write()) - np.asarray(drawing()).astype(int))
    assert difference.max() <= tolerance or difference.mean() < 2 and tolerance > 0


@pytest.mark.parametrize("kind", NOTES)
def test_what_is_wrong_beside_the_pixels_of_a_png_does_not_matter(tmp_path: Path, kind: str) -> None:
    assert (read(tmp_path, NOTES[kind]()) == np.asarray(drawing())).all()


@pytest.mark.parametrize("kind", JPEG_NOTES)
def test_what_is_wrong_beside_the_pixels_of_a_jpeg_does_not_matter(tmp_path: Path, kind: str) -> None:
    plain = read(tmp_path, file_of(drawing(), "JPEG", quality=95))
    assert (read(tmp_path, JPEG_NOTES[kind]()) == plain).all()


def test_notes_of_a_webp_that_are_cut_off_do_not_matter(tmp_path: Path) -> None:
    whole = file_of(drawing(), "WEBP", lossless=True, exif=exif_block(1, more=bytes(500)), xmp=b"<x>" * 99)
    for cut in (1, 100, 400):
        assert (read(tmp_path, whole[:-cut]) == np.asarray(drawing())).all()


class TestTransparency:
    @pytest.mark.parametrize("hidden", [(255, 0, 255), (0, 0, 0), (0, 255, 0)])
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_shows_white_and_never_what_is_hidden(
        self, tmp_path: Path, hidden: tuple[int, int, int], kind: str
    ) -> None:
        content = file_of(
            transparent(drawing(), hidden), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})
        )
        wanted = on_white(drawing(), np.tile(RAMP, (64, 1)))
        assert np.abs(read(tmp_path, content) - wanted).max() <= 1

    def test_of_grey_with_opacity(self, tmp_path: Path) -> None:
        wanted = on_white(drawing().convert("L").convert("RGB"), np.tile(RAMP, (64, 1)))
        assert np.abs(read(tmp_path, file_of(transparent(drawing()).convert("LA"))) - wanted).max() <= 1

    def test_of_16_bit_grey_with_one_transparent_value(self, tmp_path: Path) -> None:
        pixels = read(tmp_path, transparent_16_bit_grey())
        assert (pixels[:, :48] == WHITE).all() and np.abs(pixels[:, 48:] - as_rgb(grey())[:, 48:]).max() <= 1

    def test_of_one_colour_of_an_rgb_picture(self, tmp_path: Path) -> None:
        pixels = read(tmp_path, file_of(drawing(), transparency=(180, 90, 60)))
        inside = (np.asarray(drawing()) == (180, 90, 60)).all(axis=-1)
        assert (
            inside.any()
            and (pixels[inside] == WHITE).all()
            and (pixels[~inside] == np.asarray(drawing())[~inside]).all()
        )

    def test_of_a_palette(self, tmp_path: Path) -> None:
        content = palette_with_transparency()
        path = tmp_path / "palette.png"
        path.write_bytes(content)
        with Image.open(path) as image:
            hidden = np.asarray(image) == 0
        pixels = read(tmp_path, content)
        assert hidden.any() and (pixels[hidden] == WHITE).all() and (pixels[~hidden] != WHITE).any(axis=-1).all()

    def test_of_a_gif(self, tmp_path: Path) -> None:
        image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        image.paste((200, 0, 0, 255), (0, 0, 20, 30))
        pixels = read(tmp_path, file_of(image, "GIF"))
        assert (pixels[:, 20:] == WHITE).all() and (pixels[:, :20] == (200, 0, 0)).all()

    def test_premultiplied_colours_are_divided_by_their_opacity(self, tmp_path: Path) -> None:
        pixels = read(tmp_path, premultiplied_tiff(np.array([[(100, 50, 0, 128), (0, 0, 0, 0)]] * 2)))
        assert np.abs(pixels[0, 0] - (227, 177, 127)).max() <= 2 and (pixels[0, 1] == WHITE).all()


class TestMasks:
    @staticmethod
    def strokes() -> Image.Image:
        mask = Image.new("L", (96, 64))
        mask.paste(255, (20, 10, 50, 40))
        return mask

    @pytest.mark.parametrize("colour", ["white", "red", "blue", "#00c000", "#c81e3c", "#000080", "yellow"])
    @pytest.mark.parametrize("hidden", ["black", "white"])
    def test_strokes_of_any_colour_on_transparency_repaint_the_strokes(
        self, tmp_path: Path, colour: str, hidden: str
    ) -> None:
        mask = Image.composite(Image.new("RGB", (96, 64), colour), Image.new("RGB", (96, 64), hidden), self.strokes())
        mask.putalpha(self.strokes())
        assert (read(tmp_path, file_of(mask), mask=True) == np.asarray(self.strokes())).all()

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
    def test_white_on_black_in_any_mode(self, tmp_path: Path, mode: str) -> None:
        content = file_of(self.strokes().convert("RGB").convert(mode), "TIFF" if mode == "CMYK" else "PNG")
        assert (read(tmp_path, content, mask=True) == np.asarray(self.strokes())).all()

    def test_coloured_strokes_on_black_count_where_nothing_is_white(self, tmp_path: Path) -> None:
        red = Image.merge("RGB", [self.strokes(), Image.new("L", (96, 64)), Image.new("L", (96, 64))])
        assert (read(tmp_path, file_of(red), mask=True) == np.asarray(self.strokes())).all()

    def test_white_strokes_on_a_colour_are_still_the_white_ones(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (96, 64), "blue")
        image.paste("white", (20, 10, 50, 40))
        pixels = read(tmp_path, file_of(image), mask=True)
        assert ((pixels > 127) == (np.asarray(self.strokes()) > 127)).all()

    def test_grey_stays_grey_and_no_profile_counts(self, tmp_path: Path) -> None:
        for levels in (grey(), grey() // 3):
            content = file_of(Image.fromarray(levels.astype(np.uint8)), icc_profile=grey_profile(1.0))
            assert (read(tmp_path, content, mask=True) == levels).all()

    def test_a_mask_is_turned_as_its_picture_is(self, tmp_path: Path) -> None:
        content = png_with(b"eXIf", exif_block(6)[6:], file_of(self.strokes()))
        assert (read(tmp_path, content, mask=True) == np.rot90(np.asarray(self.strokes()), -1)).all()


class TestProfiles:
    @pytest.mark.parametrize("kind", PROFILED)
    def test_colours_become_srgb(self, tmp_path: Path, kind: str) -> None:
        write, tolerance = PROFILED[kind]
        difference = np.abs(read(tmp_path, write()) - np.asarray(drawing()).astype(int))
        assert difference.max() == 0 if tolerance == 0 else difference.mean() <= tolerance

    def test_of_a_printer(self, tmp_path: Path) -> None:
        """Every ink of this one is red."""
        cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        for kind in ("TIFF", "JPEG"):
            pixels = read(tmp_path, file_of(cyan, kind, icc_profile=cmyk_profile((53, 80, 67))))
            assert np.abs(pixels - (254, 0, 0)).max() <= 6

    def test_of_grey(self, tmp_path: Path) -> None:
        """Half of the light is 188 in sRGB."""
        half = Image.new("L", (8, 8), 128)
        assert np.abs(read(tmp_path, file_of(half, icc_profile=grey_profile(1.0))) - 188).max() <= 1

    def test_beside_transparency(self, tmp_path: Path) -> None:
        content = file_of(transparent(in_space(drawing(), ADOBE_RGB, 2.2)), icc_profile=profile(ADOBE_RGB, 2.2))
        assert np.abs(read(tmp_path, content) - on_white(drawing(), np.tile(RAMP, (64, 1)))).max() <= 2

    def test_a_damaged_one_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        read(tmp_path, PROFILED["a damaged one"][0]())
        assert caplog.messages == ["image: its colour profile is damaged; its colours are taken as sRGB"]


class TestOrientation:
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("value", range(1, 9))
    def test_is_applied(self, tmp_path: Path, value: int, order: str) -> None:
        turned = {
            1: lambda pixels: pixels,
            2: np.fliplr,
            3: lambda pixels: np.rot90(pixels, 2),
            4: np.flipud,
            5: lambda pixels: np.fliplr(np.rot90(pixels, -1)),
            6: lambda pixels: np.rot90(pixels, -1),
            7: lambda pixels: np.flipud(np.rot90(pixels, -1)),
            8: np.rot90,
        }[value]
        for content in (
            png_with(b"eXIf", exif_block(value, order)[6:]),
            file_of(drawing(), "WEBP", lossless=True, exif=exif_block(value, order)),
            file_of(drawing(), "TIFF", tiffinfo={0x0112: value}),
        ):
            assert (read(tmp_path, content) == turned(np.asarray(drawing()))).all()
        avif = read(tmp_path, file_of(drawing(), "AVIF", quality=95, exif=exif_block(value, order)[6:]))
        assert np.abs(avif - turned(np.asarray(drawing())).astype(int)).mean() < 2

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_that_means_nothing_turns_nothing(self, tmp_path: Path, value: int) -> None:
        assert (read(tmp_path, png_with(b"eXIf", exif_block(value)[6:])) == np.asarray(drawing())).all()

    def test_500_odd_blocks_hide_no_pixel(self, tmp_path: Path) -> None:
        rng = random.Random(0)
        pixels = np.asarray(drawing())
        counts = {True: 0, False: 0}
        for _ in range(500):
            block = random_exif(rng)
            got = read(tmp_path, png_with(b"eXIf", block[6:]) if rng.random() < 0.5 else jpeg_with(0xE1, block))
            turned = got.shape != pixels.shape
            counts[turned] += 1
            assert sorted(got.shape) == sorted(pixels.shape)
        assert counts[True] > 10 and counts[False] > 10


class TestFrames:
    @pytest.mark.parametrize(
        ("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
    )
    def test_the_first_is_taken(self, tmp_path: Path, kind: str, options: dict[str, bool]) -> None:
        colours = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
        frames = [Image.new("RGB", (40, 30), colour) for colour in colours]
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (read(tmp_path, content) == colours[0]).all()


class TestCutFiles:
    def test_a_few_missing_rows_are_told_and_the_others_are_there(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        high = drawing().resize((192, 320))
        for whole in (file_of(high), file_of(high, "JPEG", quality=95)):
            assert (read(tmp_path, whole[: int(len(whole) * 0.985)])[:280] == read(tmp_path, whole)[:280]).all()
        assert len(caplog.messages) == 2
        assert all(told.startswith("image: the file is cut off; ") for told in caplog.messages)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    @pytest.mark.parametrize("share", [0.4, 0.5, 0.7])
    def test_more_is_refused(self, tmp_path: Path, kind: str, share: float) -> None:
        content = file_of(drawing(), kind, quality=95)
        message = refused(tmp_path, content[: int(len(content) * share)])
        assert "image: is cut off: " in message and "% of it is missing; save or send it again" in message

    @pytest.mark.parametrize("kind", ["WEBP", "AVIF", "GIF", "BMP", "TIFF"])
    def test_those_of_other_formats_are_refused(self, tmp_path: Path, kind: str) -> None:
        content = file_of(drawing(), kind)
        assert "is not an image that can be read" in refused(tmp_path, content[: len(content) // 2])

    def test_a_picture_with_a_grey_edge_and_no_end_marker_is_whole(self, tmp_path: Path) -> None:
        image = drawing().copy()
        image.paste("white", (0, 30, 96, 64))
        assert read(tmp_path, file_of(image, "JPEG", quality=95)[:-2]).shape == (64, 96, 3)


class TestRefusals:
    def test_what_is_no_image_is_refused_without_its_path_or_content(self, tmp_path: Path) -> None:
        message = refused(tmp_path, b"root:x:0:0")
        assert f"give one of {', '.join(IMAGE_FORMATS)}" in message and "root" not in message
        with pytest.raises(InputError, match="image: there is no such file"):
            read_image(tmp_path / "none.png", "image")

    @pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "JPEG2000", "PDF", "EPS", "PCX"])
    def test_formats_that_are_not_on_the_list_are_refused(self, tmp_path: Path, kind: str) -> None:
        assert "is not an image that can be read" in refused(tmp_path, file_of(drawing(), kind))

    def test_heic_without_its_package_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        assert "pip install pillow-heif" in refused(tmp_path, heic(drawing()))

    @pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 20_000, 2**31 - 1])
    def test_too_many_pixels_are_refused_by_the_header(self, tmp_path: Path, side: int) -> None:
        assert "at most 40 megapixels" in refused(tmp_path, png_header(side, side))

    @pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (900, 100), (100, 801), (65_535, 8)])
    def test_shapes_beyond_8_to_1_are_refused_by_the_header(self, tmp_path: Path, size: tuple[int, int]) -> None:
        message = refused(tmp_path, png_header(*size))
        assert f"is {size[0]}x{size[1]}; its longer side may be at most 8 times the shorter one" in message

    @pytest.mark.parametrize("size", [(800, 100), (100, 800), (1, 1), (8, 1)])
    def test_shapes_up_to_8_to_1_are_read(self, tmp_path: Path, size: tuple[int, int]) -> None:
        assert read(tmp_path, file_of(Image.new("RGB", size))).shape == (size[1], size[0], 3)
