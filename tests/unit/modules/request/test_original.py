"""What a finished picture keeps of the file that it began from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import DISPLAY_P3, drawing, exif_block, file_of, in_space, profile

from modules.request.input_image import read_image, read_original
from modules.request.original import Original

P3 = profile(DISPLAY_P3, 2.2)


def cut_out() -> Image.Image:
    """The drawing with a soft edge, opaque below, transparent above, where it hides colours."""
    image = drawing().convert("RGBA")
    ramp = np.linspace(0, 255, image.height).round().astype(np.uint8)
    image.putalpha(Image.fromarray(np.repeat(ramp[:, None], image.width, axis=1)))
    return image


FILES: Mapping[str, bytes] = {
    "sRGB": file_of(drawing()),
    "transparent": file_of(cut_out()),
    "Display P3": file_of(in_space(drawing(), DISPLAY_P3, 2.2), icc_profile=P3),
    "Display P3, transparent, webp": file_of(cut_out(), "WEBP", lossless=True, exact=True, icc_profile=P3),
    "Display P3, on its side": file_of(in_space(drawing(), DISPLAY_P3, 2.2), exif=exif_block(6), icc_profile=P3),
    "palette": file_of(drawing().convert("P")),
    "grey": file_of(drawing().convert("L")),
    "grey, transparent": file_of(cut_out().convert("LA")),
}


def original_of(content: bytes, tmp_path: Path) -> Original:
    (tmp_path / "image").write_bytes(content)
    return read_original(tmp_path / "image", "image")


def in_file(content: bytes, tmp_path: Path) -> Image.Image:
    """The pixels as Pillow reads them, upright, RGB or RGBA."""
    (tmp_path / "image").write_bytes(content)
    with Image.open(tmp_path / "image") as image:
        upright = image.transpose(Image.Transpose.ROTATE_270) if image.getexif().get(0x0112) == 6 else image
        return upright.convert("RGBA" if image.mode in ("RGBA", "LA") else "RGB")


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_where_nothing_is_drawn_the_pixels_are_those_of_the_file(content: bytes, tmp_path: Path) -> None:
    original, expected = original_of(content, tmp_path), in_file(content, tmp_path)
    drawn = original.image.copy()
    drawn.paste("red", (10, 10, 20, 20))
    finished, used = original.finished(drawn, transparent=True)
    differs = (np.asarray(finished) != np.asarray(expected)).any(axis=2)
    assert finished.mode == expected.mode and used == original.profile
    assert differs[10:20, 10:20].any()
    differs[10:20, 10:20] = False
    assert not differs.any()


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_the_picture_that_is_worked_on_is_the_one_that_every_stage_gets(content: bytes, tmp_path: Path) -> None:
    original = original_of(content, tmp_path)
    assert original.image == read_image(tmp_path / "image", "image") and not original.image.info
    assert not original.colours.info


def test_what_is_drawn_is_stored_in_the_colour_space_of_the_file(tmp_path: Path) -> None:
    original = original_of(FILES["Display P3"], tmp_path)
    drawn = original.image.copy()
    drawn.paste((200, 60, 40), (0, 0, 30, 30))
    finished, used = original.finished(drawn, transparent=True)
    (tmp_path / "finished.png").write_bytes(file_of(finished, icc_profile=used))
    seen = np.asarray(read_image(tmp_path / "finished.png", "image"), np.int16)
    assert np.abs(seen[:30, :30] - (200, 60, 40)).max() <= 2


def test_what_is_drawn_looks_the_same_on_white(tmp_path: Path) -> None:
    original = original_of(FILES["transparent"], tmp_path)
    lower = original.image.height // 2
    drawn = original.image.copy()
    drawn.paste((230, 200, 180), (5, lower, 40, lower + 10))
    finished, _ = original.finished(drawn, transparent=True)
    flat = Image.alpha_composite(Image.new("RGBA", finished.size, "white"), finished)
    assert np.abs(np.asarray(flat.convert("RGB"), np.int16) - np.asarray(drawn, np.int16)).max() <= 1


def test_without_transparency_in_the_format_the_picture_is_on_white(tmp_path: Path) -> None:
    original = original_of(FILES["transparent"], tmp_path)
    finished, _ = original.finished(original.image, transparent=False)
    assert finished.mode == "RGB" and finished == original.image


def test_an_upscaled_picture_keeps_its_transparency(tmp_path: Path) -> None:
    original = original_of(FILES["Display P3, transparent, webp"], tmp_path)
    larger = original.image.resize([2 * side for side in original.image.size])
    finished, used = original.finished(larger, transparent=True)
    assert finished.mode == "RGBA" and finished.size == larger.size and used == b""
    assert finished.getchannel("A").getextrema() == (0, 255)


def test_what_is_painted_is_seen(tmp_path: Path) -> None:
    """A mask over a transparent part makes it opaque, and nothing else."""
    original = original_of(FILES["transparent"], tmp_path)
    mask = Image.new("L", original.image.size)
    mask.paste(255, (0, 0, 20, 20))
    painted, before = (np.array(one.finished(one.image, True)[0]) for one in (original.opaque_where(mask), original))
    assert (painted[:20, :20, 3] == 255).all()
    assert np.array_equal(painted[:20, :20, :3], np.asarray(original.image)[:20, :20])
    painted[:20, :20] = before[:20, :20]
    assert np.array_equal(painted, before)
