"""A picture that came with a request: right whatever its file is like, or refused in one line that names the field."""

from __future__ import annotations

import logging
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import (
    drawing,
    exif_block,
    file_of,
    heic,
    jpeg_with,
    png_header,
    png_with,
)
from support.read_images import read
from support.refusals import refusal

from backend.core.errors import InputError
from bench.robustness.pictures import LINE, RIGHT, WRONG, exif_trial, judged
from bench.support.random_pictures import random_file
from modules.request.input_image import IMAGE_FORMATS, MAX_PIXELS, read_image

Write = Callable[[], bytes]


def refused(tmp_path: Path, content: bytes) -> str:
    return refusal(lambda: read(tmp_path, content))


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

    def test_odd_blocks_hide_no_pixel_and_turn_the_picture_as_opencv_does(self, tmp_path: Path) -> None:
        rng = random.Random(0)
        for _ in range(200):
            outcome, words = exif_trial(rng, tmp_path / "given")
            assert outcome == RIGHT, words


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


class TestRandomFiles:
    def test_300_of_every_kind_of_pixels_are_right_or_refused(self, tmp_path: Path) -> None:
        rng, outcomes = random.Random(1), Counter[str]()
        for _ in range(300):
            file = random_file(rng)
            outcome, words = judged(file, tmp_path / "given")
            outcomes[outcome] += 1
            assert outcome != WRONG, f"{file.kind}: {words}"
        assert outcomes[RIGHT] > 150 and outcomes[LINE] > 20

    def test_400_damaged_files_give_a_picture_or_one_line(self, tmp_path: Path) -> None:
        rng = random.Random(2)
        read_ones = 0
        for _ in range(400):
            content = bytearray(random_file(rng).content)
            for _ in range(rng.choice((1, 2, 5, 20))):
                at = rng.randrange(min(len(content), rng.choice((64, 400, 100_000))))
                if rng.random() < 0.7:
                    content[at] = rng.randrange(256)
                else:
                    content[at : at + rng.randrange(20)] = rng.randbytes(rng.randrange(20))
            try:
                read(tmp_path, bytes(content), mask=rng.random() < 0.5)
                read_ones += 1
            except InputError as error:
                assert str(error).startswith(("image: ", "mask: ")) and "\n" not in str(error)  # noqa: PT017
        assert 20 < read_ones < 380


class TestRefusals:
    def test_what_is_no_image_is_refused_without_its_path_or_content(self, tmp_path: Path) -> None:
        message = refused(tmp_path, b"root:x:0:0")
        assert f"give one of {', '.join(IMAGE_FORMATS)}" in message and "root" not in message
        with pytest.raises(InputError, match="image: there is no file 'none.png'"):
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
