"""Draws a face: eyes, mouth, beard and glasses, in the face's own coordinates (see ``training.data.drawing``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from training.data.scene import HAIR_COLOURS, Colour, Person
from training.data.shapes import Point, ellipse, mirrored, mix, shade, smooth, stroke

INK: Colour = (44, 34, 38)
WHITE: Colour = (252, 252, 252)

Painter = Callable[[Sequence[Point], Colour], None]


FACE = smooth(mirrored([(0.0, -1.0), (0.5, -0.92), (0.82, -0.5), (0.88, 0.05), (0.74, 0.6), (0.38, 0.93), (0.0, 1.0)]))
EYE = (0.36, -0.06)
"""The middle of the right eye in the picture."""
LIPS: Colour = (198, 54, 64)
"""Bright enough for every skin."""


def draw_face(paint: Painter, person: Person, skin: Colour) -> None:
    hair = HAIR_COLOURS[person.hair_colour]
    for side in (-1, 1):
        paint(ellipse(side * 0.88, 0.06, 0.15, 0.2), shade(skin, -0.12))
    paint(FACE, skin)
    for side in (-1, 1):
        paint(ellipse(side * 0.54, 0.36, 0.18, 0.13), mix(skin, (240, 90, 90), 0.3))
    if person.beard:
        outline = [(0.0, 0.34), (0.36, 0.36), (0.62, 0.24), (0.88, 0.02), (0.8, 0.55), (0.46, 1.02), (0.0, 1.16)]
        paint(smooth(mirrored(outline)), shade(hair, -0.1))
    paint(ellipse(0, 0.2, 0.1, 0.08), shade(skin, -0.22))
    draw_eyes(paint, person)
    draw_brows(paint, person, shade(hair, -0.35) if person.hair_length != "bald" else INK)
    draw_mouth(paint, person)


def draw_eyes(paint: Painter, person: Person) -> None:
    """White with a dark pupil, which shows on every skin; glasses are round, with lenses of the same white."""
    for side in (-1, 1):
        x, y = side * EYE[0], EYE[1]
        if person.glasses:
            paint(ellipse(x, y, 0.34, 0.34), INK)
            paint(ellipse(x, y, 0.25, 0.25), WHITE)
            paint(stroke([(side * 0.66, y), (side * 0.9, y - 0.04)], 0.09), INK)
        if person.expression == "laughing":
            paint(
                stroke([(x - 0.16, y + 0.06), (x - 0.09, y - 0.06), (x + 0.09, y - 0.06), (x + 0.16, y + 0.06)], 0.1),
                INK,
            )
            continue
        if not person.glasses:
            paint(ellipse(x, y, 0.2, 0.2), WHITE)
        paint(ellipse(x, y, 0.125, 0.125), INK)
    if person.glasses:
        paint(stroke([(-0.08, EYE[1] - 0.04), (0.08, EYE[1] - 0.04)], 0.09), INK)


def draw_brows(paint: Painter, person: Person, colour: Colour) -> None:
    lift = -0.14 if person.expression == "surprised" else 0.0
    inner = {"sad": -0.12, "serious": 0.05}.get(person.expression, 0.0)
    for side in (-1, 1):
        y = (-0.5 if person.glasses else -0.4) + lift
        paint(stroke([(side * 0.17, y + inner), (side * 0.37, y - 0.05), (side * 0.57, y - inner / 2)], 0.11), colour)


def draw_mouth(paint: Painter, person: Person) -> None:
    if person.expression == "smiling":
        paint(smooth([(-0.36, 0.5), (0.0, 0.62), (0.36, 0.5), (0.26, 0.7), (0.0, 0.79), (-0.26, 0.7)]), LIPS)
    elif person.expression == "laughing":
        paint(smooth([(-0.4, 0.46), (0.0, 0.48), (0.4, 0.46), (0.28, 0.76), (0.0, 0.88), (-0.28, 0.76)]), LIPS)
        paint(smooth([(-0.31, 0.48), (0.0, 0.5), (0.31, 0.48), (0.26, 0.59), (0.0, 0.62), (-0.26, 0.59)]), WHITE)
    elif person.expression == "sad":
        paint(smooth([(-0.32, 0.76), (-0.2, 0.6), (0.0, 0.54), (0.2, 0.6), (0.32, 0.76), (0.0, 0.68)]), LIPS)
    elif person.expression == "surprised":
        paint(ellipse(0, 0.64, 0.17, 0.19), LIPS)
    else:
        paint(stroke([(-0.28, 0.62), (0.28, 0.62)], 0.11), LIPS)
