"""Draws whole figures with the heads of :mod:`training.data.drawing`, and knows exactly which pixels are whose.

Everything is drawn twice: in its colour, and as a number in a map of labels. What the map shows is what the picture
shows, so a mask knows of everything that stands in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from modules.detection.detections import Mask, bounding_box
from training.data.drawing import SUPERSAMPLE, draw_background, draw_layers, draw_person
from training.data.face_drawing import INK
from training.data.figures import (
    HAND,
    HIP,
    LEG,
    SPREAD,
    UPPER_ARM,
    Figures,
    Stance,
    along,
    arm_joints,
    breadth,
    height_of,
    leg_share,
)
from training.data.scene import BACKGROUND_COLOURS, SHIRT_COLOURS, SKIN_TONES, Colour, Person, Placement, Scene
from training.data.shapes import Box, Point, ellipse, mirrored, shade, smooth

PARTS = 4
"""Labels of a person: number times ``PARTS``, plus 1 or 2 on the hands. 0 is the background."""
SEEN = 0.35
"""A hand of which less than this share can be seen is none: nobody could find it."""


@dataclass(frozen=True)
class Drawn:
    """A picture and what is in it. ``persons`` are masks H x W of 0 or 255, one for everybody who can be seen; boxes
    are pixels."""

    image: Image.Image
    persons: tuple[Mask, ...]
    hands: tuple[Box, ...]

    @property
    def person_boxes(self) -> list[Box]:
        return [box for mask in self.persons if (box := bounding_box(mask))]


class LabelledDraw(ImageDraw.ImageDraw):
    """Draws every polygon in its colour, and in ``label`` on a map beside."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__(image)
        self.map = Image.new("L", image.size)
        self.label = 0
        self._labels = ImageDraw.Draw(self.map)

    def polygon(self, xy, fill=None, outline=None, width=1) -> None:  # type: ignore[no-untyped-def]  # Pillow's own is typed loosely
        super().polygon(xy, fill, outline, width)
        if self.label:
            self._labels.polygon(xy, self.label)

    def labels(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.asarray(self.map)


class Painter:
    """Paints polygons of a figure's own units onto the canvas; ``tilt`` turns them around the face's centre."""

    def __init__(self, draw: LabelledDraw, place: Placement, scale: float, tilt: float = 0.0) -> None:
        self.draw, self.size = draw, place.size * scale
        self.x, self.y = place.x * scale, place.y * scale
        self.cos, self.sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))

    def __call__(self, points: Sequence[Point], colour: Colour) -> None:
        turned = [
            (self.x + (x * self.cos - y * self.sin) * self.size, self.y + (x * self.sin + y * self.cos) * self.size)
            for x, y in points
        ]
        self.draw.polygon(turned, fill=colour)


def limb(a: Point, b: Point, wide_a: float, wide_b: float) -> list[Point]:
    """A tapered limb with round ends; the widths are half ones."""
    angle = math.degrees(math.atan2(b[1] - a[1], b[0] - a[0]))
    ends = ((a, wide_a, angle + 90), (b, wide_b, angle - 90))
    return [
        (x + r * math.cos(t), y + r * math.sin(t))
        for (x, y), r, start in ends
        for t in (math.radians(start + 15 * k) for k in range(13))
    ]


FINGERS: Mapping[str, tuple[tuple[float, float], ...]] = MappingProxyType(
    {
        # of every finger: degrees from the hand's direction (the thumb's side is negative), and its length
        "open": ((-26, 0.62), (0, 0.72), (26, 0.62)),
        "relaxed": ((-4, 0.5), (0, 0.56), (4, 0.5)),
        "fist": (),
        "pointing": ((-4, 0.8),),
    }
)
"""Three fingers and a thumb, as cartoons have them: four would be thinner than the model can draw."""
THUMBS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"open": (-70.0, 0.62), "relaxed": (-40.0, 0.5), "fist": (-30.0, 0.4), "pointing": (-70.0, 0.5)}
)
PALM = smooth(
    [(-0.1, 0.3), (0.22, 0.42), (0.62, 0.46), (0.8, 0.26), (0.82, -0.26), (0.62, -0.46), (0.2, -0.4), (-0.1, -0.3)]
)


def draw_hand(paint: Painter, wrist: Point, degrees: float, side: int, hand: str, skin: Colour) -> None:
    """A palm with its fingers. The thumb points to the body when the arm hangs."""
    cos, sin = side * math.sin(math.radians(degrees)), math.cos(math.radians(degrees))

    def placed(points: Sequence[Point], colour: Colour) -> None:
        # the palm lies along x; the thumb's side is -y, which is towards the body of a hanging arm
        paint(
            [
                (wrist[0] + HAND * (x * cos - side * y * sin), wrist[1] + HAND * (x * sin + side * y * cos))
                for x, y in points
            ],
            colour,
        )

    dark = shade(skin, -0.22)
    fingers = FINGERS[hand]
    for index, (turn, length) in enumerate(fingers):
        base = (0.6, -0.28 + 0.28 * index)
        tip = (base[0] + length * math.cos(math.radians(turn)), base[1] + length * math.sin(math.radians(turn)))
        placed(limb(base, tip, 0.17, 0.16), dark if index == 1 and hand == "relaxed" else skin)
        if index == 1 and hand == "relaxed":
            placed(limb(base, tip, 0.13, 0.13), skin)
    placed(PALM, skin)
    turn, length = THUMBS[hand]
    tip = (0.2 + length * math.cos(math.radians(turn)), -0.24 + length * math.sin(math.radians(turn)))
    if hand in ("fist", "pointing"):
        placed(limb((0.2, -0.2), tip, 0.2, 0.19), dark)
    placed(limb((0.2, -0.2), tip, 0.16, 0.15), skin)


def draw_arm(paint: Painter, person: Person, stance: Stance, side: int, number: int) -> None:
    """One arm with its hand, which gets a label of its own."""
    arm, skin, shirt = stance.arms[(side + 1) // 2], SKIN_TONES[person.skin], SHIRT_COLOURS[person.shirt]
    sleeve = shade(shirt, -0.1)
    shoulder, elbow, wrist = arm_joints(person, stance, side)
    person_label = paint.draw.label
    paint.draw.label = person_label + number
    draw_hand(paint, wrist, arm.fore, side, arm.hand, skin)
    paint.draw.label = person_label
    paint(limb(shoulder, elbow, 0.3, 0.25), skin)
    paint(limb(elbow, wrist, 0.25, 0.2), skin)
    if stance.sleeves > 0:
        end = elbow if stance.sleeves >= 0.5 else along(shoulder, arm.upper, 0.75 * UPPER_ARM, side)
        paint(limb(shoulder, end, 0.36, 0.31), sleeve)
    if stance.sleeves >= 0.5:
        cuff = (elbow[0] + 0.93 * (wrist[0] - elbow[0]), elbow[1] + 0.93 * (wrist[1] - elbow[1]))
        paint(limb(elbow, cuff, 0.31, 0.27), sleeve)


def draw_legs(paint: Painter, person: Person, stance: Stance) -> None:
    skin, length, broad = SKIN_TONES[person.skin], LEG * leg_share(person), breadth(person)
    for side in (-1, 1):
        hip = (side * 0.4 * broad, HIP)
        middle, ankle = along(hip, SPREAD, 0.5 * length, side), along(hip, SPREAD, length, side)
        paint(ellipse(ankle[0] + side * 0.14, ankle[1] + 0.14, 0.42, 0.26), INK)
        bare = stance.lower != "trousers"
        paint(limb(hip, ankle, 0.4 * broad, 0.26 if bare else 0.33), skin if bare else stance.lower_colour)
        if stance.lower == "shorts":
            paint(limb(hip, middle, 0.42 * broad, 0.4), stance.lower_colour)


def draw_skirt_or_hips(paint: Painter, person: Person, stance: Stance) -> None:
    broad = breadth(person)
    lower = SHIRT_COLOURS[person.shirt] if stance.lower == "dress" else stance.lower_colour
    if stance.lower in ("skirt", "dress"):
        hem = HIP + 0.5 * LEG * leg_share(person)
        outline = [(0.0, 2.3), (0.7 * broad, 2.35), (0.9 * broad, HIP - 0.2), (1.3 * broad, hem), (0.0, hem + 0.12)]
    else:
        outline = [(0.0, 2.4), (0.74 * broad, 2.45), (0.82 * broad, HIP), (0.5 * broad, HIP + 0.3), (0.0, HIP + 0.2)]
    paint(smooth(mirrored(outline)), lower)


def draw_torso(paint: Painter, person: Person, stance: Stance) -> None:
    broad = breadth(person)
    draw_skirt_or_hips(paint, person, stance)
    outline = [(0.0, 1.1), (0.42, 1.16), (0.86, 1.34), (1.0, 1.6), (0.9, 2.1), (0.86, 2.76), (0.0, 2.82)]
    paint(smooth(mirrored([(x * broad, y) for x, y in outline])), SHIRT_COLOURS[person.shirt])


def draw_figure(draw: LabelledDraw, person: Person, stance: Stance, place: Placement, scale: float) -> None:
    upright, tilted = Painter(draw, place, scale), Painter(draw, place, scale, place.tilt)

    def body() -> None:
        draw_legs(upright, person, stance)
        draw_torso(upright, person, stance)

    draw_layers(upright, tilted, person, body)
    for number, side in enumerate((-1, 1), start=1):
        draw_arm(upright, person, stance, side, number)


LAND: Colour = (150, 150, 120)
"""What a shadow falls on in a landscape."""


def draw_ground(draw: LabelledDraw, figures: Figures, scale: float) -> None:
    """A shadow under every figure, so that it stands somewhere."""
    colour = shade(BACKGROUND_COLOURS.get(figures.scene.background, LAND), -0.2)
    for person, place in zip(figures.scene.people, figures.scene.placements):
        y = place.y + height_of(person) * place.size
        Painter(draw, Placement(place.x, y, place.size, 0), scale)(ellipse(0, -0.1, 1.3, 0.26), colour)


def draw_figures(figures: Figures) -> Drawn:
    """The picture, RGB, antialiased, with its persons and hands."""
    scene, height = figures.scene, figures.scene.height * SUPERSAMPLE
    canvas = Image.new("RGB", (scene.width * SUPERSAMPLE, height))
    draw = LabelledDraw(canvas)
    draw_background(draw, scene, *canvas.size)
    draw_ground(draw, figures, SUPERSAMPLE)
    whole: dict[int, int] = {}
    for number, (person, stance, place) in enumerate(
        sorted(zip(scene.people, figures.stances, scene.placements), key=lambda one: one[2].y), start=1
    ):
        draw.label = PARTS * number
        draw_figure(draw, person, stance, place, SUPERSAMPLE)
        counts = np.bincount(draw.labels().ravel(), minlength=256)
        whole.update({label: int(counts[label]) for label in (PARTS * number + 1, PARTS * number + 2)})
    return _drawn(canvas, draw.labels(), len(scene.people), whole)


def draw_portraits(scene: Scene) -> Drawn:
    """The same picture as :func:`training.data.drawing.draw_scene`, with its persons; they show no hands."""
    canvas = Image.new("RGB", (scene.width * SUPERSAMPLE, scene.height * SUPERSAMPLE))
    draw = LabelledDraw(canvas)
    draw_background(draw, scene, *canvas.size)
    for number, (person, place) in enumerate(
        sorted(zip(scene.people, scene.placements), key=lambda pair: pair[1].y), start=1
    ):
        draw.label = PARTS * number
        draw_person(draw, person, place, SUPERSAMPLE)
    return _drawn(canvas, draw.labels(), len(scene.people), {})


def _drawn(
    canvas: Image.Image, labels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], people: int, whole: dict[int, int]
) -> Drawn:
    """``whole`` has the pixels that every hand had when it was drawn, before others came in front of it."""
    persons = [
        np.asarray(Image.fromarray(np.where(labels // PARTS == number, 255, 0).astype(np.uint8)).reduce(SUPERSAMPLE))
        for number in range(1, people + 1)
    ]
    masks = [np.where(person >= 128, 255, 0).astype(np.uint8) for person in persons]
    hands = []
    for label, pixels in whole.items():
        seen = labels == label
        if pixels and np.count_nonzero(seen) >= SEEN * pixels:
            x1, y1, x2, y2 = bounding_box(seen.astype(np.uint8)) or (0, 0, 0, 0)
            hands.append((x1 / SUPERSAMPLE, y1 / SUPERSAMPLE, x2 / SUPERSAMPLE, y2 / SUPERSAMPLE))
    return Drawn(canvas.reduce(SUPERSAMPLE), tuple(mask for mask in masks if mask.any()), tuple(hands))
