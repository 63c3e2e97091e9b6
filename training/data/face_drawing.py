"""Draws a face: eyes, mouth, beard and glasses, in the face's own coordinates (see ``training.data.drawing``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from training.data.scene import HAIR_COLOURS, Colour, Person
from training.data.shapes import Point, ellipse, mirrored, mix, shade, smooth, stroke

INK: Colour = (44, 34, 38)
WHITE: Colour = (252, 252, 252)

Painter = Callable[[Sequence[Point], Colour], None]


FACE = smooth(mirrored([(0.0, -1.0), (0.48, -0.9), (0.75, -0.45), (0.77, 0.1), (0.6, 0.66), (0.28, 0.95), (0.0, 1.0)]))


def draw_face(paint: Painter, person: Person, skin: Colour) -> None:
    hair = HAIR_COLOURS[person.hair_colour]
    dark = shade(skin, -0.22)
    for side in (-1, 1):
        paint(ellipse(side * 0.78, 0.06, 0.14, 0.22), dark)
        paint(ellipse(side * 0.77, 0.06, 0.11, 0.19), skin)
    paint(FACE, skin)
    for side in (-1, 1):
        paint(ellipse(side * 0.46, 0.38, 0.17, 0.12), mix(skin, (240, 90, 90), 0.22))
    if person.beard:
        beard = shade(hair, -0.1)
        paint(
            smooth(
                mirrored([(0.0, 0.36), (0.34, 0.34), (0.56, 0.2), (0.76, 0.02), (0.7, 0.55), (0.42, 1.0), (0.0, 1.14)])
            ),
            beard,
        )
    paint(smooth([(-0.04, 0.0), (0.06, 0.0), (0.14, 0.26), (0.0, 0.33), (-0.1, 0.27)]), dark)
    draw_eyes(paint, person, shade(hair, -0.35) if person.hair_length != "bald" else INK)
    draw_mouth(paint, person, skin)


def draw_eyes(paint: Painter, person: Person, brow: Colour) -> None:
    wide = 1.22 if person.expression == "surprised" else 1.0
    iris = ((92, 62, 40), (60, 110, 170), (70, 130, 80), (54, 44, 44))[person.style // 3 % 4]
    lashes = person.kind in ("woman", "girl")
    for side in (-1, 1):
        x = side * 0.33
        if person.expression == "laughing":
            paint(stroke([(x - 0.17, -0.04), (x - 0.09, -0.14), (x + 0.09, -0.14), (x + 0.17, -0.04)], 0.09), INK)
        else:
            paint(ellipse(x, -0.1, 0.19, 0.135 * wide), WHITE)
            paint(ellipse(x, -0.095, 0.118, 0.122 * wide), iris)
            paint(ellipse(x, -0.095, 0.07, 0.075), INK)
            paint(ellipse(x + 0.04, -0.14, 0.034, 0.034), WHITE)
            paint(
                stroke(
                    [
                        (x - 0.2, -0.1),
                        (x - 0.13, -0.21 * wide),
                        (x, -0.25 * wide),
                        (x + 0.13, -0.21 * wide),
                        (x + 0.2, -0.1),
                    ],
                    0.085 if lashes else 0.05,
                ),
                INK,
            )
        lift = {"surprised": -0.16, "sad": 0.02}.get(person.expression, 0.0)
        inner = {"sad": -0.12, "serious": 0.07}.get(person.expression, 0.0)
        paint(
            stroke(
                [
                    (side * 0.15, -0.36 + lift + inner),
                    (side * 0.33, -0.44 + lift),
                    (side * 0.54, -0.36 + lift - inner * 0.4),
                ],
                0.075 if lashes else 0.11,
            ),
            brow,
        )


def draw_mouth(paint: Painter, person: Person, skin: Colour) -> None:
    lip: Colour = mix(skin, (190, 40, 60), 0.7) if person.kind in ("woman", "girl") else mix(skin, (130, 40, 50), 0.55)
    if person.expression == "smiling":
        paint(smooth([(-0.36, 0.5), (0.0, 0.59), (0.36, 0.5), (0.24, 0.69), (0.0, 0.76), (-0.24, 0.69)]), lip)
        paint(smooth([(-0.26, 0.55), (0.0, 0.61), (0.26, 0.55), (0.17, 0.63), (0.0, 0.665), (-0.17, 0.63)]), WHITE)
    elif person.expression == "laughing":
        paint(
            smooth([(-0.38, 0.46), (0.0, 0.5), (0.38, 0.46), (0.27, 0.76), (0.0, 0.88), (-0.27, 0.76)]), (110, 24, 36)
        )
        paint(smooth([(-0.31, 0.48), (0.0, 0.52), (0.31, 0.48), (0.26, 0.58), (0.0, 0.61), (-0.26, 0.58)]), WHITE)
    elif person.expression == "sad":
        paint(stroke([(-0.25, 0.68), (-0.12, 0.59), (0.0, 0.565), (0.12, 0.59), (0.25, 0.68)], 0.1), lip)
    elif person.expression == "surprised":
        paint(ellipse(0, 0.64, 0.16, 0.2), lip)
        paint(ellipse(0, 0.65, 0.1, 0.135), (96, 22, 32))
    else:
        paint(stroke([(-0.25, 0.6), (-0.1, 0.6), (0.1, 0.6), (0.25, 0.6)], 0.1), lip)


def draw_glasses(paint: Painter, person: Person) -> None:
    if not person.glasses:
        return
    frame: Colour = ((34, 30, 36), (120, 40, 40), (40, 60, 110))[person.style // 84 % 3]
    square = person.style // 252 % 2
    for side in (-1, 1):
        x = side * 0.345
        ring = [
            (
                x + 0.3 * math.copysign(abs(math.cos(a)) ** (0.45 if square else 1.0), math.cos(a)),
                -0.08 + 0.27 * math.copysign(abs(math.sin(a)) ** (0.45 if square else 1.0), math.sin(a)),
            )
            for a in (2 * math.pi * k / 32 for k in range(33))
        ]
        paint(stroke(ring, 0.085), frame)
        paint(stroke([(side * 0.62, -0.12), (side * 0.8, -0.1)], 0.085), frame)
    paint(stroke([(-0.08, -0.12), (0.0, -0.15), (0.08, -0.12)], 0.085), frame)
