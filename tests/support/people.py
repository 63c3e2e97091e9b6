"""Drawings of one, two and four people, with faces that the embedded detector finds."""

from __future__ import annotations

import random

from PIL import Image

from training.data.drawing import draw_scene
from training.data.scene import sample_scene


def portraits(count: int, seed: int) -> list[Image.Image]:
    """Drawings of one person each, 256 x 256."""
    rng = random.Random(seed)
    scenes = (sample_scene(rng, (256, 256)) for _ in range(100))
    return [draw_scene(scene) for scene in scenes if scene.framing == "portrait" and len(scene.people) == 1][:count]


def couple() -> Image.Image:
    """Two people side by side, 384 x 256."""
    rng = random.Random(3)
    return draw_scene(
        next(scene for scene in iter(lambda: sample_scene(rng, (384, 256)), None) if len(scene.people) == 2)
    )


def crowd() -> Image.Image:
    """Four people in a row, 1024 x 256, so far apart that their crops do not overlap."""
    row = Image.new("RGB", (1024, 256))
    for index, portrait in enumerate(portraits(4, seed=5)):
        row.paste(portrait, (256 * index, 0))
    return row
