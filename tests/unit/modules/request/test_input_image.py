"""A picture that came with a request: decoded only when its header allows it, and never named in an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from backend.core.errors import InputError
from modules.request.input_image import MAX_PIXELS, read_image


def test_what_is_not_an_image_is_refused_without_its_path_or_content(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_text("root:x:0:0")
    with pytest.raises(InputError) as caught:
        read_image(secret, "image")
    assert (
        "is not an image" in str(caught.value) and "secret" not in str(caught.value) and "root" not in str(caught.value)
    )
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none.png", "image")


def test_a_cut_off_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.new("RGB", (300, 300), "red").save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="image: is not an image that can be read"):
        read_image(path, "image")


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    path = tmp_path / "large.png"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(InputError, match="at most 40 megapixels"):
        read_image(path, "image")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(InputError, match="at most 40 megapixels"):
        read_image(path, "image")


def test_a_turned_photograph_is_set_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", "image").size == (20, 40)
