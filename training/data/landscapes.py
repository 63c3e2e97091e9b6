"""Draws whole landscapes: alone, or behind people. Coordinates are shares of the picture's width and height."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from PIL import ImageDraw

from training.data.scene import Colour
from training.data.shapes import Point, ellipse, shade, smooth

LandscapePainter = Callable[[ImageDraw.ImageDraw, int, int, int], None]


def fill(draw: ImageDraw.ImageDraw, points: Sequence[Point], width: int, height: int, colour: Colour) -> None:
    draw.polygon([(x * width, y * height) for x, y in points], fill=colour)


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, width: int, height: int, colour: Colour) -> None:
    """A circle whose radius is a share of the shorter side."""
    draw.polygon(ellipse(x * width, y * height, radius * min(width, height), radius * min(width, height)), fill=colour)


def draw_mountains(draw: ImageDraw.ImageDraw, width: int, height: int, style: int) -> None:
    """Two ranges with snow, a meadow, and the sun at one of two places; by day or at sunset."""
    sunset = style % 3 == 0
    sky: Colour = (246, 186, 130) if sunset else (150, 202, 238)
    far: Colour = (150, 120, 150) if sunset else (130, 156, 190)
    near: Colour = (104, 86, 120) if sunset else (92, 116, 150)
    draw.rectangle((0, 0, width, height), fill=sky)
    disc(draw, 0.22 if style // 3 % 2 else 0.78, 0.2, 0.09, width, height, (255, 236, 150))
    for peaks, foot, colour in (
        (((0.12, 0.4), (0.42, 0.26), (0.8, 0.38)), 0.74, far),
        (((0.26, 0.36), (0.66, 0.3)), 0.78, near),
    ):
        for x, y in peaks:
            reach = (foot - y) * 0.85
            fill(draw, [(x, y), (x + reach, foot), (x - reach, foot)], width, height, colour)
            cap = 0.3 * reach
            teeth = [(x, y), (x + cap, y + 0.35 * reach), (x + 0.4 * cap, y + 0.26 * reach), (x, y + 0.4 * reach)]
            fill(
                draw,
                [*teeth, (x - 0.4 * cap, y + 0.26 * reach), (x - cap, y + 0.35 * reach)],
                width,
                height,
                (248, 248, 250),
            )
    meadow: Colour = (110, 140, 84) if sunset else (112, 176, 96)
    fill(draw, [(0, 0.72), (0.3, 0.69), (0.7, 0.75), (1, 0.7), (1, 1), (0, 1)], width, height, meadow)
    for x, y in ((0.1, 0.74), (0.2, 0.8), (0.86, 0.76), (0.94, 0.84)):
        fill(draw, [(x, y - 0.1), (x + 0.04, y + 0.04), (x - 0.04, y + 0.04)], width, height, shade(meadow, -0.4))


def draw_beach(draw: ImageDraw.ImageDraw, width: int, height: int, style: int) -> None:
    """Sky, sea and sand with a palm on one side; by day or at sunset."""
    sunset = style % 3 == 0
    draw.rectangle((0, 0, width, height), fill=(248, 176, 120) if sunset else (158, 212, 242))
    disc(draw, 0.5, 0.4 if sunset else 0.18, 0.12 if sunset else 0.09, width, height, (255, 230, 140))
    sea: Colour = (92, 110, 160) if sunset else (56, 146, 196)
    fill(draw, [(0, 0.46), (1, 0.46), (1, 0.8), (0, 0.8)], width, height, sea)
    fill(draw, [(0, 0.6), (1, 0.6), (1, 0.72), (0, 0.72)], width, height, shade(sea, 0.2))
    curve = [(0, 0.72), (0.3, 0.69), (0.65, 0.75), (1, 0.71)]
    fill(draw, [*((x, y - 0.02) for x, y in curve), (1, 1), (0, 1)], width, height, (250, 250, 248))
    fill(draw, [*curve, (1, 1), (0, 1)], width, height, (240, 212, 156))
    side = 1 if style // 3 % 2 else -1

    def at(x: float, y: float) -> Point:
        return (0.5 + side * x, y)

    fill(draw, [at(0.34, 0.86), at(0.4, 0.86), at(0.35, 0.36), at(0.325, 0.36)], width, height, (138, 98, 64))
    for dx, dy in ((0.2, -0.05), (0.16, 0.1), (-0.2, -0.05), (-0.16, 0.1), (0.02, -0.16)):
        leaf = [
            at(0.34, 0.35),
            at(0.34 + 0.5 * dx, 0.29 + dy * 0.6),
            at(0.34 + dx, 0.36 + dy),
            at(0.34 + 0.5 * dx, 0.37 + dy * 0.6),
        ]
        fill(draw, smooth(leaf), width, height, (66, 136, 74))


def draw_city(draw: ImageDraw.ImageDraw, width: int, height: int, style: int) -> None:
    """Towers with lit windows before a night sky with the moon."""
    rng = random.Random(style % 8)
    draw.rectangle((0, 0, width, height), fill=(28, 32, 66))
    moon = (0.2, 0.16) if style // 8 % 2 else (0.8, 0.16)
    disc(draw, *moon, 0.075, width, height, (250, 240, 190))
    disc(draw, moon[0] + 0.03, moon[1] - 0.02, 0.06, width, height, (28, 32, 66))
    for _ in range(14):
        disc(draw, rng.random(), rng.uniform(0.02, 0.4), 0.006, width, height, (240, 240, 220))
    for row, colour in ((0, (52, 58, 100)), (1, (38, 40, 72))):
        x = -0.02 * row
        while x < 1:
            wide, top = rng.uniform(0.12, 0.18), rng.uniform(0.3, 0.5) + 0.16 * row
            fill(draw, [(x, top), (x + wide, top), (x + wide, 1), (x, 1)], width, height, colour)
            for column in range(2):
                for floor in range(int((0.96 - top) / 0.1)):
                    if rng.random() < 0.6:
                        left, y = x + wide * (0.2 + 0.36 * column), top + 0.05 + 0.1 * floor
                        window = [
                            (left, y),
                            (left + 0.24 * wide, y),
                            (left + 0.24 * wide, y + 0.045),
                            (left, y + 0.045),
                        ]
                        fill(draw, window, width, height, (250, 212, 112))
            x += wide


LANDSCAPE_PAINTERS: Mapping[str, LandscapePainter] = MappingProxyType(
    {"mountain landscape": draw_mountains, "beach": draw_beach, "city at night": draw_city}
)
