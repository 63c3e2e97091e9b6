"""What a picture without people shows: one to three things, or a landscape, as plain data.

``training.data.thing_drawing`` draws it and ``training.data.thing_captions`` puts it into words.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from training.data.scene import BACKGROUND_COLOURS, LANDSCAPES, Colour

CAR_COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (208, 46, 50),
        "blue": (48, 98, 204),
        "yellow": (248, 208, 62),
        "green": (58, 146, 78),
        "white": (240, 240, 238),
        "black": (46, 46, 52),
        "orange": (234, 126, 42),
    }
)
PETAL_COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (214, 44, 56),
        "yellow": (250, 206, 58),
        "pink": (240, 130, 170),
        "purple": (138, 82, 180),
        "blue": (66, 112, 210),
        "white": (248, 248, 244),
        "orange": (240, 130, 50),
    }
)
THINGS: Mapping[str, Mapping[str, Colour]] = MappingProxyType(
    {
        "cat": {
            "black": (48, 44, 50),
            "white": (244, 242, 236),
            "gray": (142, 144, 150),
            "orange": (232, 146, 66),
            "brown": (132, 92, 64),
        },
        "dog": {
            "brown": (142, 96, 62),
            "black": (52, 48, 52),
            "white": (244, 240, 232),
            "golden": (224, 176, 104),
            "gray": (148, 148, 152),
        },
        "house": {
            "red": (190, 66, 56),
            "white": (242, 240, 234),
            "blue": (96, 144, 206),
            "yellow": (244, 210, 110),
            "green": (112, 168, 112),
            "pink": (238, 168, 184),
        },
        "tree": {"green": (74, 150, 76), "orange": (230, 138, 54), "pink": (240, 160, 186), "yellow": (236, 200, 76)},
        "car": CAR_COLOURS,
        "flower": PETAL_COLOURS,
        "bowl of fruit": {
            "blue": (76, 124, 196),
            "white": (238, 238, 234),
            "red": (190, 62, 56),
            "brown": (138, 94, 60),
            "green": (92, 150, 96),
        },
    }
)
"""The things that can be drawn, and in which colours; a bowl of fruit has the bowl's."""
BACKGROUNDS = tuple(name for name in BACKGROUND_COLOURS if name not in ("black", "brown"))
MOST: Mapping[str, int] = MappingProxyType({"bowl of fruit": 1, "house": 2})
"""How many of a kind are drawn at most, where it is not three."""


@dataclass(frozen=True)
class Place:
    """The middle of a thing and half of its height, in pixels."""

    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Things:
    """``places`` holds one entry a thing; a landscape has none, no colour and no background."""

    kind: str
    colour: str | None
    background: str | None
    places: tuple[Place, ...]
    style: int
    width: int
    height: int


def place_things(rng: random.Random, count: int, width: int, height: int) -> tuple[Place, ...]:
    """Side by side, as large as fits."""
    size = min(0.34 * height, 0.40 * width / count) * rng.uniform(0.85, 1.0)
    slot = width / count
    return tuple(
        Place(slot * (i + 0.5 + rng.uniform(-0.04, 0.04)), height * rng.uniform(0.50, 0.56), size) for i in range(count)
    )


def sample_things(rng: random.Random, size: tuple[int, int]) -> Things:
    width, height = size
    kind = rng.choice((*THINGS, *LANDSCAPES))
    style = rng.randrange(1 << 8)
    if kind in LANDSCAPES:
        return Things(kind, None, None, (), style, width, height)
    count = min(rng.choices((1, 2, 3), (70, 18, 12))[0], MOST.get(kind, 3))
    colour = rng.choice(list(THINGS[kind]))
    background = rng.choice([name for name in BACKGROUNDS if name != colour])
    return Things(kind, colour, background, place_things(rng, count, width, height), style, width, height)
