"""Real photographs of people, which ride in ultralytics' package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image


def photograph(name: str = "zidane.jpg") -> Image.Image:
    """Two men ("zidane.jpg", 1280 x 720), or people at a bus ("bus.jpg", 810 x 1080), RGB."""
    spec = find_spec("ultralytics")
    assert spec is not None and spec.origin is not None
    return Image.open(Path(spec.origin).parent / "assets" / name).convert("RGB")


def one_man() -> Image.Image:
    """The man on the right of "zidane.jpg", 640 x 720."""
    return photograph().crop((640, 0, 1280, 720))
