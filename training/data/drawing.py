"""Draws a :class:`~training.data.scene.Scene` as a flat illustration, and says exactly where the faces are.

Everything is a closed smooth curve in the person's own coordinates (the face's centre is 0, 0 and its half height is 1,
y points down), so a head can be placed, scaled and tilted by one transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from PIL import Image, ImageDraw

from training.data.face_drawing import Painter, draw_face
from training.data.landscapes import LANDSCAPE_PAINTERS
from training.data.scene import (
    BACKGROUND_COLOURS,
    HAIR_COLOURS,
    HAT_COLOURS,
    SHIRT_COLOURS,
    SKIN_TONES,
    Colour,
    Person,
    Placement,
    Scene,
)
from training.data.shapes import Box, Point, ellipse, mirrored, shade, smooth

SUPERSAMPLE = 3


def draw_body(paint: Painter, person: Person, skin: Colour) -> None:
    shirt = SHIRT_COLOURS[person.shirt]
    broad = 1.0 if person.kind in ("man", "boy") else 0.88
    torso = mirrored(
        [
            (0.0, 1.12),
            (0.42, 1.2),
            (1.15 * broad, 1.5),
            (1.72 * broad, 1.95),
            (1.98 * broad, 3.0),
            (2.1 * broad, 5.5),
            (2.1 * broad, 9.0),
        ]
    )
    paint(smooth(torso), shirt)
    paint(
        smooth(
            [
                (1.3 * broad, 2.6),
                (1.45 * broad, 3.4),
                (1.5 * broad, 9.0),
                (2.2 * broad, 9.0),
                (2.05 * broad, 4.0),
                (1.9 * broad, 2.8),
            ]
        ),
        shade(shirt, -0.16),
    )


def draw_neck(paint: Painter, person: Person, skin: Colour) -> None:
    paint(ellipse(0, 1.34, 0.44, 0.3), skin)
    paint(smooth(mirrored([(0.0, 0.6), (0.32, 0.6), (0.3, 1.1), (0.38, 1.4), (0.0, 1.62)])), skin)
    paint(smooth(mirrored([(0.0, 0.85), (0.33, 0.75), (0.3, 1.02), (0.0, 1.2)])), shade(skin, -0.18))


def draw_hair_back(paint: Painter, person: Person) -> None:
    hair = HAIR_COLOURS[person.hair_colour]
    if person.hair_length == "long":
        paint(
            smooth(
                mirrored(
                    [
                        (0.0, -1.3),
                        (0.7, -1.16),
                        (1.08, -0.6),
                        (1.14, 0.1),
                        (1.15, 0.75),
                        (1.2, 1.35),
                        (1.02, 1.95),
                        (0.6, 2.0),
                        (0.3, 1.4),
                        (0.0, 1.0),
                    ]
                )
            ),
            shade(hair, -0.14),
        )
    elif person.hair_length == "short":
        paint(
            smooth(mirrored([(0.0, -1.26), (0.64, -1.14), (0.99, -0.66), (1.0, 0.0), (0.76, 0.34), (0.0, 0.2)])),
            shade(hair, -0.14),
        )


STRAIGHT: tuple[Point, ...] = (
    (-0.9, 0.0),
    (-1.02, -0.55),
    (-0.64, -1.17),
    (0.0, -1.32),
    (0.64, -1.17),
    (1.02, -0.55),
    (0.9, 0.0),
    (0.8, -0.5),
    (0.4, -0.62),
    (0.0, -0.62),
    (-0.4, -0.62),
    (-0.8, -0.5),
)
PARTED: tuple[Point, ...] = (
    (-0.92, 0.05),
    (-1.03, -0.55),
    (-0.62, -1.18),
    (0.05, -1.34),
    (0.68, -1.15),
    (1.02, -0.5),
    (0.91, 0.0),
    (0.78, -0.4),
    (0.34, -0.74),
    (-0.25, -0.84),
    (-0.62, -0.55),
    (-0.8, -0.3),
)
SWEPT_UP: tuple[Point, ...] = (
    (-0.9, -0.05),
    (-1.02, -0.6),
    (-0.57, -1.22),
    (0.12, -1.42),
    (0.72, -1.2),
    (1.02, -0.55),
    (0.9, -0.05),
    (0.8, -0.5),
    (0.38, -0.8),
    (0.0, -0.84),
    (-0.38, -0.8),
    (-0.8, -0.5),
)
FRINGES: Mapping[str, tuple[Point, ...]] = MappingProxyType(
    {"woman": PARTED, "man": SWEPT_UP, "girl": STRAIGHT, "boy": STRAIGHT}
)


def draw_hair_front(paint: Painter, person: Person) -> None:
    if person.hair_length == "bald":
        return
    hair = HAIR_COLOURS[person.hair_colour]
    paint(smooth(FRINGES[person.kind]), hair)
    if person.hair_length == "long":
        for side in (-1, 1):
            paint(
                smooth(
                    [
                        (side * 0.84, -0.6),
                        (side * 1.03, -0.5),
                        (side * 1.14, 0.4),
                        (side * 1.1, 1.5),
                        (side * 0.88, 1.5),
                        (side * 0.9, 0.5),
                        (side * 0.82, -0.2),
                    ]
                ),
                hair,
            )


def draw_hat(paint: Painter, person: Person) -> None:
    if not person.hat:
        return
    colour = HAT_COLOURS[person.hat]
    paint(
        smooth(mirrored([(0.0, -1.62), (0.62, -1.5), (1.0, -1.05), (1.06, -0.62), (0.5, -0.7), (0.0, -0.74)])), colour
    )
    brim = [
        (-1.5, -0.6),
        (-1.0, -0.78),
        (0.0, -0.84),
        (1.0, -0.78),
        (1.5, -0.6),
        (1.0, -0.52),
        (0.0, -0.56),
        (-1.0, -0.52),
    ]
    paint(smooth(brim), shade(colour, -0.22))


def draw_layers(upright: Painter, tilted: Painter, person: Person, body: Callable[[], None]) -> None:
    """From back to front: short hair lies behind the body, long hair before it; the head tilts, the neck does not."""
    skin = SKIN_TONES[person.skin]
    if person.hair_length == "short":
        draw_hair_back(tilted, person)
    body()
    if person.hair_length == "long":
        draw_hair_back(tilted, person)
    draw_neck(upright, person, skin)
    draw_face(tilted, person, skin)
    draw_hair_front(tilted, person)
    draw_hat(tilted, person)


def draw_person(draw: ImageDraw.ImageDraw, person: Person, place: Placement, scale: float) -> None:
    child = 0.94 if person.kind in ("girl", "boy") else 1.0
    cos, sin = math.cos(math.radians(place.tilt)), math.sin(math.radians(place.tilt))
    size, x0, y0 = place.size * scale, place.x * scale, place.y * scale

    def upright(points: Sequence[Point], colour: Colour) -> None:
        # the body does not tilt with the head, it leans a little from the neck on
        draw.polygon([(x0 - sin * size * 1.2 + x * size * child, y0 + y * size) for x, y in points], fill=colour)

    def tilted(points: Sequence[Point], colour: Colour) -> None:
        draw.polygon(
            [(x0 + (x * cos - y * sin) * size, y0 + (x * sin + y * cos) * size) for x, y in points], fill=colour
        )

    draw_layers(upright, tilted, person, lambda: draw_body(upright, person, SKIN_TONES[person.skin]))


def draw_background(draw: ImageDraw.ImageDraw, scene: Scene, width: int, height: int) -> None:
    if scene.background in LANDSCAPE_PAINTERS:
        LANDSCAPE_PAINTERS[scene.background](draw, width, height, scene.people[0].style if scene.people else 0)
        return
    base = BACKGROUND_COLOURS[scene.background]
    draw.rectangle((0, 0, width, height), fill=base)


def draw_scene(scene: Scene, scale: int = 1) -> Image.Image:
    """The picture of a scene, RGB, ``scale`` times the scene's size, antialiased by drawing larger and averaging."""
    factor = SUPERSAMPLE * scale
    width, height = scene.width * factor, scene.height * factor
    canvas = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(canvas)
    draw_background(draw, scene, width, height)
    for person, place in sorted(zip(scene.people, scene.placements), key=lambda pair: pair[1].y):
        draw_person(draw, person, place, factor)
    return canvas.reduce(SUPERSAMPLE)


def face_boxes(scene: Scene) -> list[Box]:
    """The box of every face (forehead to chin, ear to ear) as x1, y1, x2, y2 in pixels, clipped to the picture."""
    boxes = []
    for place in scene.placements:
        turn = abs(math.sin(math.radians(place.tilt)))
        rx, ry = (0.94 + 0.2 * turn) * place.size, 1.02 * place.size
        box = (
            max(place.x - rx, 0),
            max(place.y - ry, 0),
            min(place.x + rx, scene.width),
            min(place.y + ry, scene.height),
        )
        boxes.append(box)
    return boxes
