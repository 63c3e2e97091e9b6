"""Every kind of pixels becomes 8-bit sRGB, or 8-bit grey for a mask: grey of any depth, transparency, profiles."""

from __future__ import annotations

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
    png_with,
    premultiplied_tiff,
    profile,
    srgb_profile,
    tiff_of,
)
from support.read_images import read

WHITE = 255
RAMP = np.linspace(0, 255, 96).round().astype(np.uint8)
"""The opacity of a transparent picture's columns."""

Write = Callable[[], bytes]


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
