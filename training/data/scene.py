"""What a training picture shows: a few people in front of a background, as plain data.

A scene is drawn by :mod:`training.data.drawing` and put into words by :mod:`training.data.captions`, so a picture and
its caption can never disagree.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

Colour = tuple[int, int, int]

BACKGROUND_COLOURS: dict[str, Colour] = {
    "red": (196, 54, 56),
    "orange": (240, 150, 62),
    "yellow": (246, 214, 92),
    "green": (92, 170, 98),
    "blue": (82, 136, 214),
    "purple": (142, 98, 186),
    "pink": (244, 166, 192),
    "white": (244, 244, 240),
    "gray": (150, 152, 156),
    "black": (40, 40, 46),
    "brown": (140, 98, 68),
    "teal": (58, 160, 160),
}
LANDSCAPES = ("mountain landscape", "beach", "city at night")
"""What may be behind people in place of a colour."""
SHIRT_COLOURS: dict[str, Colour] = {
    "red": (206, 44, 48),
    "orange": (238, 130, 38),
    "yellow": (248, 208, 56),
    "green": (58, 150, 72),
    "blue": (46, 98, 200),
    "purple": (122, 70, 170),
    "pink": (242, 136, 174),
    "white": (248, 248, 246),
    "gray": (134, 136, 142),
    "black": (36, 36, 42),
    "brown": (122, 80, 52),
    "teal": (30, 140, 142),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (38, 32, 34),
    "brown": (108, 66, 40),
    "blonde": (236, 200, 104),
    "red": (186, 70, 34),
    "gray": (148, 148, 152),
    "white": (236, 234, 230),
    "blue": (62, 98, 204),
    "green": (66, 152, 88),
    "pink": (238, 118, 168),
    "purple": (132, 76, 176),
}
HAT_COLOURS = {
    name: SHIRT_COLOURS[name] for name in ("red", "yellow", "green", "blue", "purple", "white", "black", "brown")
}
SKIN_TONES: dict[str, Colour] = {
    "pale": (252, 226, 206),
    "light": (244, 206, 176),
    "tan": (222, 172, 132),
    "brown": (168, 116, 82),
    "dark": (120, 80, 58),
}
EXPRESSIONS = ("smiling", "serious", "laughing", "sad", "surprised")
KINDS = ("woman", "man", "girl", "boy")
FRAMINGS = ("close-up", "portrait", "half-body")

ASPECTS: tuple[tuple[int, int], ...] = (
    (256, 256),
    (288, 224),
    (224, 288),
    (320, 224),
    (224, 320),
    (352, 192),
    (192, 352),
    (384, 160),
    (160, 384),
)
"""Picture sizes (width, height) in pixels that the small models are trained on; all hold about 256 x 256 pixels."""


@dataclass(frozen=True)
class Person:
    kind: str
    hair_colour: str
    hair_length: str  # short | long | bald
    skin: str
    expression: str
    shirt: str
    glasses: bool
    beard: bool
    hat: str | None  # colour of the hat
    style: int  # a number that picks the kind of landscape


@dataclass(frozen=True)
class Placement:
    """Where a person's face is: its centre and half its height in pixels, and the tilt of the head in degrees."""

    x: float
    y: float
    size: float
    tilt: float


@dataclass(frozen=True)
class Scene:
    people: tuple[Person, ...]
    placements: tuple[Placement, ...]
    background: str
    framing: str
    width: int
    height: int


def sample_person(rng: random.Random) -> Person:
    kind = rng.choices(KINDS, (40, 40, 10, 10))[0]
    male = kind in ("man", "boy")
    length = rng.choices(("short", "long", "bald"), (80, 12, 8) if male else (30, 70, 0))[0]
    if kind == "boy" and length == "bald":
        length = "short"
    natural = rng.random() < 0.6
    names = list(HAIR_COLOURS)
    hair = rng.choices(names, [30, 30, 30, 30, 12, 12, 4, 4, 4, 4] if natural else [1] * len(names))[0]
    return Person(
        kind=kind,
        hair_colour=hair,
        hair_length=length,
        skin=rng.choice(list(SKIN_TONES)),
        expression=rng.choices(EXPRESSIONS, (40, 25, 12, 12, 11))[0],
        shirt=rng.choice(list(SHIRT_COLOURS)),
        glasses=rng.random() < 0.3,
        beard=kind == "man" and rng.random() < 0.3,
        hat=rng.choice(list(HAT_COLOURS)) if length != "bald" and rng.random() < 0.14 else None,
        style=rng.randrange(1 << 16),
    )


def place_people(rng: random.Random, count: int, framing: str, width: int, height: int) -> tuple[Placement, ...]:
    """Faces side by side; a face's half height is 0.10 to 0.40 of the picture's shorter side."""
    unit = min(width, height)
    if count == 1:
        size = {
            "close-up": rng.uniform(0.32, 0.4),
            "portrait": rng.uniform(0.23, 0.28),
            "half-body": rng.uniform(0.16, 0.19),
        }
        half = size[framing] * unit
        x = width * 0.5 + rng.uniform(-1, 1) * min(0.03 * width, max(0.0, width * 0.5 - 1.2 * half))
        centre = {"close-up": 0.50, "portrait": 0.44, "half-body": 0.36}[framing]
        y = height * (centre + rng.uniform(-0.02, 0.02))
        return (Placement(x, max(y, 1.15 * half), half, rng.uniform(-2, 2)),)
    slot = width / count
    half = min(slot / 2.9, unit * 0.26) * rng.uniform(0.88, 1.0)
    return tuple(
        Placement(
            slot * (index + 0.5) + rng.uniform(-0.03, 0.03) * slot,
            height * rng.uniform(0.36, 0.46),
            half * rng.uniform(0.94, 1.05),
            rng.uniform(-3, 3),
        )
        for index in range(count)
    )


def sample_scene(rng: random.Random, size: tuple[int, int] | None = None) -> Scene:
    """One random scene. Half of the pictures are square, the others have one of the ratios in ``ASPECTS``."""
    width, height = size or (ASPECTS[0] if rng.random() < 0.6 else rng.choice(ASPECTS[1:]))
    wide = width / height
    count = rng.choices((1, 2, 3), (72, 18, 10) if wide >= 1 else (90, 10, 0))[0]
    framing = rng.choices(FRAMINGS, (25, 55, 20))[0] if count == 1 else "portrait"
    people = tuple(sample_person(rng) for _ in range(count))
    background = rng.choice(LANDSCAPES if rng.random() < 0.1 else list(BACKGROUND_COLOURS))
    return Scene(people, place_people(rng, count, framing, width, height), background, framing, width, height)


def is_held_out(person: Person, background: str) -> bool:
    """Whether this combination of hair, shirt and background (one in 23) is kept from training, to measure with."""
    if background in LANDSCAPES:
        return False
    hair = list(HAIR_COLOURS).index(person.hair_colour)
    shirt = list(SHIRT_COLOURS).index(person.shirt)
    return (3 * hair + 5 * shirt + 7 * list(BACKGROUND_COLOURS).index(background)) % 23 == 0


def sample_training_scene(rng: random.Random, size: tuple[int, int] | None = None) -> Scene:
    """A random scene whose people all have combinations that are not held out."""
    while True:
        scene = sample_scene(rng, size)
        if not any(is_held_out(person, scene.background) for person in scene.people):
            return scene


def sample_near_face(rng: random.Random, size: tuple[int, int]) -> Scene:
    """A training scene that one face fills as a crop of the detail pass."""
    while True:
        scene = sample_training_scene(rng, size)
        if scene.framing == "close-up":
            return scene
