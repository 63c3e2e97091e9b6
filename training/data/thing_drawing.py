"""Draws :class:`~training.data.things.Things` in the style of the portraits: closed smooth curves in flat colours.

A thing's middle is 0, 0, its half height is 1, and y points down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from PIL import Image, ImageDraw

from training.data.face_drawing import INK, WHITE, Painter
from training.data.landscapes import LANDSCAPE_PAINTERS
from training.data.scene import BACKGROUND_COLOURS, Colour
from training.data.shapes import Point, ellipse, mirrored, mix, shade, smooth, stroke
from training.data.things import THINGS, Place, Things

SUPERSAMPLE = 3
WINDOW: Colour = (176, 214, 236)
WOOD: Colour = (122, 84, 56)
LEAF: Colour = (70, 140, 72)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def light(colour: Colour) -> bool:
    return sum(colour) > 600


def draw_animal_eyes(paint: Painter, x: float, y: float) -> None:
    for side in (-1, 1):
        paint(ellipse(side * x, y, 0.16, 0.17), WHITE)
        paint(ellipse(side * x, y, 0.1, 0.11), INK)


def draw_cat(paint: Painter, fur: Colour, style: int) -> None:
    """A cat that sits, seen from in front."""
    dark = shade(fur, 0.2) if sum(fur) < 200 else shade(fur, -0.2)
    tail = [(0.3, 0.78), (0.66, 0.76), (0.78, 0.5), (0.72, 0.24), (0.86, 0.16), (0.98, 0.5), (0.84, 0.88), (0.3, 0.96)]
    paint(smooth(tail), dark)
    paint(smooth(mirrored([(0.0, -0.1), (0.36, 0.0), (0.54, 0.5), (0.58, 0.94), (0.0, 1.0)])), fur)
    for x in (-1, 1):
        paint(ellipse(x * 0.26, 0.93, 0.22, 0.11), dark)
        paint([(x * 0.12, -0.72), (x * 0.56, -1.02), (x * 0.64, -0.42)], fur)
        paint([(x * 0.3, -0.72), (x * 0.5, -0.86), (x * 0.54, -0.58)], (240, 150, 164))
    paint(ellipse(0, -0.36, 0.66, 0.5), fur)
    draw_animal_eyes(paint, 0.27, -0.42)
    paint([(-0.09, -0.24), (0.09, -0.24), (0.0, -0.14)], (234, 110, 130))
    for x in (-1, 1):
        paint(stroke([(0.0, -0.14), (x * 0.08, -0.06), (x * 0.18, -0.1)], 0.05), INK if sum(fur) > 200 else WHITE)


def draw_dog(paint: Painter, fur: Colour, style: int) -> None:
    """A dog that sits, seen from in front, with hanging ears."""
    dark = shade(fur, 0.2) if sum(fur) < 200 else shade(fur, -0.34)
    tail = [(0.35, 0.74), (0.62, 0.64), (0.78, 0.32), (0.92, 0.34), (0.84, 0.66), (0.4, 0.92)]
    paint(smooth(tail), fur)
    paint(smooth(mirrored([(0.0, -0.1), (0.36, 0.0), (0.54, 0.5), (0.58, 0.94), (0.0, 1.0)])), fur)
    for x in (-1, 1):
        paint(ellipse(x * 0.26, 0.93, 0.22, 0.11), dark)
    paint(stroke([(-0.36, 0.1), (0.0, 0.18), (0.36, 0.1)], 0.14), (204, 56, 60))
    paint(smooth(mirrored([(0.0, -0.96), (0.4, -0.9), (0.58, -0.5), (0.5, -0.06), (0.0, 0.1)])), fur)
    for x in (-1, 1):
        ear = [(x * 0.36, -0.9), (x * 0.62, -0.88), (x * 0.8, -0.42), (x * 0.7, -0.08), (x * 0.52, -0.3)]
        paint(smooth(ear), dark)
    draw_animal_eyes(paint, 0.22, -0.5)
    paint(ellipse(0, -0.14, 0.3, 0.2), mix(fur, WHITE, 0.6))
    paint(ellipse(0, -0.24, 0.14, 0.1), INK)
    paint(stroke([(-0.12, -0.06), (0.0, -0.01), (0.12, -0.06)], 0.05), INK)


def draw_house(paint: Painter, wall: Colour, style: int) -> None:
    roof = ((150, 62, 52), (96, 74, 66), (84, 92, 108))[style % 3]
    if sum(abs(a - b) for a, b in zip(roof, wall)) < 120:
        roof = (84, 92, 108)
    paint(rectangle(0.34, -0.98, 0.56, -0.4), shade(roof, -0.2))
    paint(rectangle(-0.78, -0.18, 0.78, 1.0), wall)
    paint(rectangle(-0.78, -0.18, 0.78, -0.06), shade(wall, -0.16))
    paint([(-0.98, -0.14), (0.0, -1.0), (0.98, -0.14)], roof)
    paint(rectangle(-0.17, 0.4, 0.17, 1.0), shade(WOOD, -0.1))
    for x in (-0.48, 0.48):
        paint(rectangle(x - 0.19, 0.12, x + 0.19, 0.52), WHITE)
        paint(rectangle(x - 0.15, 0.16, x + 0.15, 0.48), WINDOW)
    paint(ellipse(0, -0.46, 0.14, 0.14), WHITE)
    paint(ellipse(0, -0.46, 0.1, 0.1), WINDOW)


def draw_tree(paint: Painter, crown: Colour, style: int) -> None:
    paint(smooth([(-0.12, 0.0), (0.12, 0.0), (0.13, 0.7), (0.26, 1.0), (-0.26, 1.0), (-0.13, 0.7)]), WOOD)
    if style % 2 and crown[1] > crown[0]:  # a fir
        for top, bottom, wide in ((0.0, 0.62, 0.72), (-0.5, 0.2, 0.56), (-1.0, -0.24, 0.4)):
            paint([(0.0, top - 0.08), (wide, bottom), (-wide, bottom)], crown)
            paint([(0.0, top - 0.08), (wide, bottom), (0.1, bottom)], shade(crown, -0.16))
        return
    for x, y, r in ((-0.36, -0.1, 0.4), (0.36, -0.1, 0.4), (0.0, -0.08, 0.42)):
        paint(ellipse(x, y, r, r * 0.92), shade(crown, -0.16))
    for x, y, r in ((-0.3, -0.34, 0.38), (0.3, -0.34, 0.36), (0.0, -0.58, 0.42)):
        paint(ellipse(x, y, r, r), crown)
    paint(ellipse(-0.12, -0.66, 0.2, 0.16), shade(crown, 0.2))


def draw_car(paint: Painter, body: Colour, style: int) -> None:
    """A car from the side; it is wider than high."""
    turn = -1 if style % 2 else 1
    dark = shade(body, -0.2) if sum(body) > 200 else shade(body, 0.18)

    def side(points: Sequence[Point], colour: Colour) -> None:
        paint([(turn * x, y) for x, y in points], colour)

    side(smooth([(-0.72, 0.0), (-0.5, -0.46), (-0.3, -0.54), (0.24, -0.54), (0.44, -0.46), (0.72, 0.0)]), body)
    side([(-0.56, -0.02), (-0.42, -0.4), (-0.06, -0.42), (-0.06, -0.02)], WINDOW)
    side([(0.02, -0.02), (0.02, -0.42), (0.32, -0.4), (0.54, -0.02)], WINDOW)
    shell = [(-1.16, 0.05), (-1.06, -0.06), (1.0, -0.06), (1.16, 0.08), (1.2, 0.36), (1.14, 0.44), (-1.14, 0.44)]
    side(shell, body)
    side(rectangle(-1.17, 0.26, 1.18, 0.34), dark)
    side(ellipse(1.1, 0.12, 0.08, 0.09), (250, 232, 150))
    side(ellipse(-1.12, 0.12, 0.05, 0.09), (220, 60, 60))
    for x in (-0.66, 0.66):
        side(ellipse(x, 0.46, 0.28, 0.28), INK)
        side(ellipse(x, 0.46, 0.14, 0.14), (190, 192, 198))


def draw_flower(paint: Painter, petal: Colour, style: int) -> None:
    paint(stroke([(0.0, -0.2), (0.03, 0.4), (0.0, 1.0)], 0.09), LEAF)
    for side in (-1, 1):
        y = 0.62 if side < 0 else 0.46
        paint(
            smooth([(side * 0.02, y + 0.12), (side * 0.3, y - 0.22), (side * 0.52, y - 0.2), (side * 0.36, y + 0.04)]),
            LEAF,
        )
    if style % 3 == 0:  # a tulip
        paint(
            smooth([(-0.36, -0.9), (-0.4, -0.4), (-0.22, -0.1), (0.22, -0.1), (0.4, -0.4), (0.36, -0.9), (0.0, -0.5)]),
            petal,
        )
        paint(smooth([(0.0, -0.98), (0.2, -0.5), (0.0, -0.1), (-0.2, -0.5)]), shade(petal, -0.14))
        return
    for x, y in ((0, -0.34), (0.33, -0.1), (0.21, 0.28), (-0.21, 0.28), (-0.33, -0.1)):
        paint(ellipse(x, y - 0.46, 0.26, 0.26), petal)
    heart: Colour = (246, 200, 66) if petal[2] > 90 or petal[1] < 100 else (126, 78, 44)
    paint(ellipse(0, -0.46, 0.2, 0.2), heart)


def draw_bowl(paint: Painter, bowl: Colour, style: int) -> None:
    """A bowl with apples, an orange, a banana and grapes."""
    banana = [
        (-0.86, -0.06),
        (-0.8, -0.42),
        (-0.5, -0.72),
        (-0.16, -0.8),
        (-0.14, -0.7),
        (-0.44, -0.54),
        (-0.58, -0.04),
    ]
    paint(smooth(banana), (246, 212, 76))
    for x, y, colour in ((0.5, -0.1, (128, 82, 160)), (0.66, -0.28, (128, 82, 160)), (0.42, -0.36, (150, 100, 182))):
        paint(ellipse(x, y, 0.17, 0.17), colour)
    for x, y, r, colour in (
        (0.08, -0.42, 0.3, (238, 146, 46)),
        (-0.36, -0.14, 0.3, (206, 52, 50)),
        (0.24, -0.08, 0.29, (126, 178, 66)),
    ):
        paint(ellipse(x, y, r, r), colour)
        paint(ellipse(x - 0.09, y - 0.1, 0.07, 0.06), shade(colour, 0.35))
    paint(smooth([(-1.0, 0.02), (1.0, 0.02), (0.86, 0.5), (0.42, 0.82), (-0.42, 0.82), (-0.86, 0.5)]), bowl)
    paint(rectangle(-1.02, -0.02, 1.02, 0.12), shade(bowl, 0.25) if not light(bowl) else shade(bowl, -0.1))
    paint(rectangle(-0.4, 0.78, 0.4, 0.9), shade(bowl, -0.2))


THING_PAINTERS: Mapping[str, Callable[[Painter, Colour, int], None]] = MappingProxyType(
    {
        "cat": draw_cat,
        "dog": draw_dog,
        "house": draw_house,
        "tree": draw_tree,
        "car": draw_car,
        "flower": draw_flower,
        "bowl of fruit": draw_bowl,
    }
)


FOOT: Mapping[str, float] = MappingProxyType({"car": 0.74, "bowl of fruit": 0.9})
"""Where a thing stands, if not at 1."""


def draw_thing(draw: ImageDraw.ImageDraw, things: Things, place: Place, shadow: Colour) -> None:
    """One of the things, with the shadow that it stands on."""
    foot = place.y + place.size * (FOOT.get(things.kind, 1.0) - 0.03)
    draw.polygon(ellipse(place.x, foot, place.size * 0.95, place.size * 0.08), fill=shadow)

    def paint(points: Sequence[Point], colour: Colour) -> None:
        draw.polygon([(place.x + x * place.size, place.y + y * place.size) for x, y in points], fill=colour)

    assert things.colour is not None
    THING_PAINTERS[things.kind](paint, THINGS[things.kind][things.colour], things.style)


def draw_things(things: Things, scale: int = 1) -> Image.Image:
    """The picture, RGB, ``scale`` times the size of ``things``."""
    factor = SUPERSAMPLE * scale
    width, height = things.width * factor, things.height * factor
    canvas = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(canvas)
    if things.background is None or things.colour is None:
        LANDSCAPE_PAINTERS[things.kind](draw, width, height, things.style)
        return canvas.reduce(SUPERSAMPLE)
    base = BACKGROUND_COLOURS[things.background]
    draw.rectangle((0, 0, width, height), fill=base)
    for place in things.places:
        draw_thing(draw, things, Place(place.x * factor, place.y * factor, place.size * factor), shade(base, -0.14))
    return canvas.reduce(SUPERSAMPLE)
