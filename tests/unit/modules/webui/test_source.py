"""What the tabs hold, as inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.core.errors import InputError
from modules.webui.source import FINISH, IMAGE, INPAINT, TEXT, source_inputs


def painting(size: tuple[int, int] = (20, 10)) -> dict[str, Any]:
    layer = Image.new("RGBA", size)
    layer.paste((255, 0, 0, 130), (2, 3, 6, 8))
    return {
        "background": Image.new("RGBA", size, "blue"),
        "layers": [layer, Image.new("RGBA", size)],
        "composite": None,
    }


def test_only_the_tab_that_is_seen_counts() -> None:
    assert source_inputs(TEXT, "one.png", painting(), "two.png") == {}
    assert str(source_inputs(IMAGE, "one.png", painting(), "two.png")["image"]) == "one.png"
    finish = source_inputs(FINISH, "one.png", painting(), "two.png")
    assert str(finish["image"]) == "two.png" and finish["prompt_strength"] == 0


def test_what_is_painted_is_white_in_the_mask_however_faint_the_brush() -> None:
    files = source_inputs(INPAINT, None, painting(), None)
    with Image.open(files["mask"]) as mask, Image.open(files["image"]) as image:
        pixels = np.asarray(mask)
        assert image.getpixel((0, 0)) == (0, 0, 255) and mask.size == image.size
    assert (pixels[3:8, 2:6] == 255).all() and pixels.sum() == 255 * 20


@pytest.mark.parametrize(
    ("tab", "editor", "line"),
    [
        (IMAGE, None, "image: is missing"),
        (FINISH, None, "image: is missing"),
        (INPAINT, None, "image: is missing"),
        (INPAINT, {"background": None, "layers": []}, "image: is missing"),
        (INPAINT, {**painting(), "layers": []}, "mask: is empty; paint over"),
        (INPAINT, {**painting(), "layers": [Image.new("RGBA", (20, 10))]}, "mask: is empty; paint over"),
    ],
)
def test_a_tab_without_its_picture_says_what_to_do(tab: str, editor: dict[str, Any] | None, line: str) -> None:
    with pytest.raises(InputError, match=line):
        source_inputs(tab, None, editor, None)
