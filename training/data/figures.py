"""What a picture of whole figures, or of a hand near by, shows: one to four people with their stances, as plain data.

Units are those of a head: the face's centre is 0, 0 and its half height is 1. ``training.data.figure_drawing`` draws
it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from training.data.scene import (
    BACKGROUND_COLOURS,
    SHIRT_COLOURS,
    Colour,
    Person,
    Placement,
    Scene,
    is_held_out,
    sample_person,
)
from training.data.shapes import Point

SHAPES: tuple[tuple[int, int], ...] = (
    (256, 256),
    (288, 224),
    (224, 288),
    (320, 224),
    (224, 320),
    (352, 192),
    (192, 352),
)
"""Picture sizes, width and height in pixels."""
FULL_BODY, HAND_CLOSE_UP = "full body", "hand"
TROUSERS: Mapping[str, Colour] = MappingProxyType(
    {
        "blue": (52, 68, 112),
        "black": (44, 44, 52),
        "brown": (120, 98, 72),
        "gray": (92, 96, 104),
        "green": (70, 84, 62),
        "beige": (150, 120, 92),
        "maroon": (86, 46, 50),
        "white": (196, 190, 178),
    }
)
LOWER_COLOURS: Mapping[Colour, str] = MappingProxyType(
    {colour: name for names in (TROUSERS, SHIRT_COLOURS) for name, colour in names.items()}
)
"""The words for the colours of trousers and skirts."""
SHOULDER, UPPER_ARM, FOREARM, HAND = (0.84, 1.6), 0.86, 0.8, 0.58
"""Where the shoulder is; lengths of the arm's parts and of the palm."""
HIP, LEG, SPREAD = 3.0, 1.9, 5.0
"""Where the legs begin, their length, and the degrees by which they part. A figure is three heads high, so that its
face has room for eyes and a mouth."""
GESTURES: Mapping[str, int] = MappingProxyType({"hanging": 40, "waving": 24, "raised": 12, "hip": 12, "pointing": 12})
"""What one arm does, and how often in a hundred."""
POSES = ("standing", "waving", "raised", "pointing", "hip")
"""What a figure does, as words can tell it."""
GARMENTS = ("trousers", "shorts", "skirt", "dress")
TOGETHER = 0.45
"""How often all the figures of a picture do the same."""


@dataclass(frozen=True)
class Arm:
    """Degrees from hanging straight down, outwards: 90 is level, 180 straight up. The forearm's are its own, not the
    elbow's."""

    gesture: str
    upper: float
    fore: float
    hand: str  # open | relaxed | fist | pointing


@dataclass(frozen=True)
class Stance:
    """How a figure stands and what it wears below the shirt."""

    arms: tuple[Arm, Arm]  # the left and the right one in the picture
    lower: str  # one of GARMENTS
    lower_colour: Colour
    sleeves: float  # 0 = none, 1 = to the wrist

    @property
    def pose(self) -> str:
        """One of ``POSES``: what somebody would say that this figure does."""
        gestures = [arm.gesture for arm in self.arms]
        if gestures == ["raised", "raised"]:
            return "raised"
        for name in ("waving", "pointing", "raised", "hip"):
            if name in gestures:
                return name
        return "standing"


@dataclass(frozen=True)
class Figures:
    """People with their stances; ``scene.placements`` are where the faces are, outside of the picture where it shows
    a hand alone."""

    scene: Scene
    stances: tuple[Stance, ...]
    side: int = 0  # of the hand that is shown near by: -1 is the left one in the picture


def sample_arm(rng: random.Random, gesture: str | None = None) -> Arm:
    gesture = gesture or rng.choices(list(GESTURES), list(GESTURES.values()))[0]
    if gesture == "hanging":
        upper = rng.uniform(12, 24)
        return Arm(gesture, upper, upper - 6, rng.choices(("relaxed", "fist"), (80, 20))[0])
    if gesture == "waving":
        return Arm(gesture, rng.uniform(85, 110), rng.uniform(155, 185), "open")
    if gesture == "raised":
        upper = rng.uniform(140, 158)
        return Arm(gesture, upper, upper + 12, rng.choices(("open", "fist"), (80, 20))[0])
    if gesture == "hip":
        return Arm(gesture, rng.uniform(44, 54), rng.uniform(-56, -46), "fist")
    upper = rng.uniform(82, 98)
    return Arm(gesture, upper, upper, "pointing")


def sample_arms(rng: random.Random, pose: str) -> tuple[Arm, Arm]:
    """Both arms of a figure that does what ``pose`` says: one of the gestures, on one side or on both."""
    both = pose in ("hanging", "raised") or rng.random() < 0.3
    arms = [sample_arm(rng, pose), sample_arm(rng, pose if both else "hanging")]
    rng.shuffle(arms)
    return arms[0], arms[1]


def sample_stance(rng: random.Random, person: Person, pose: str | None = None) -> Stance:
    female = person.kind in ("woman", "girl")
    return Stance(
        arms=sample_arms(rng, pose) if pose else (sample_arm(rng), sample_arm(rng)),
        lower=rng.choices(GARMENTS, (45, 15, 22, 18) if female else (75, 25, 0, 0))[0],
        lower_colour=rng.choice(list(TROUSERS.values()))
        if rng.random() < 0.75
        else rng.choice(list(SHIRT_COLOURS.values())),
        sleeves=rng.choices((1.0, 0.3), (75, 25))[0],
    )


def height_of(person: Person) -> float:
    """From the face's centre to the soles, in half faces."""
    return HIP + LEG * leg_share(person) + 0.45


def leg_share(person: Person) -> float:
    return 0.74 if person.kind in ("girl", "boy") else 1.0


def breadth(person: Person) -> float:
    return {"man": 1.1, "woman": 0.95, "boy": 0.86, "girl": 0.82}[person.kind]


def along(start: Point, degrees: float, length: float, side: int) -> Point:
    """The point ``length`` away from ``start``, in the direction of an :class:`Arm`'s degrees on this side of the
    body."""
    return start[0] + side * length * math.sin(math.radians(degrees)), start[1] + length * math.cos(
        math.radians(degrees)
    )


def arm_joints(person: Person, stance: Stance, side: int) -> tuple[Point, Point, Point]:
    """Shoulder, elbow and wrist."""
    arm, shorter = stance.arms[(side + 1) // 2], 0.85 + 0.15 * leg_share(person)
    shoulder = (side * SHOULDER[0] * breadth(person), SHOULDER[1])
    elbow = along(shoulder, arm.upper, UPPER_ARM * shorter, side)
    return shoulder, elbow, along(elbow, arm.fore, FOREARM * shorter, side)


def sample_figures(rng: random.Random, size: tuple[int, int] | None = None, pose: str | None = None) -> Figures:
    """One to four figures side by side, whole or with the legs cut off by the picture's edge; ``pose`` is the
    gesture of everybody."""
    width, height = size or rng.choice(SHAPES)
    count = rng.choices((1, 2, 3, 4), (34, 30, 20, 16) if width >= height else (60, 30, 10, 0))[0]
    people = tuple(sample_person(rng) for _ in range(count))
    slot = width / count
    whole = rng.random() < 0.9
    tall = height * (rng.uniform(0.8, 0.95) if whole else rng.uniform(1.15, 1.4))
    unit = max(min(tall / 7.2, slot / (3.2 if count > 1 else 3.8)) * rng.uniform(0.9, 1.0), 8.0)
    placements = []
    for index, person in enumerate(people):
        own = unit * rng.uniform(0.94, 1.04)
        feet = height - rng.uniform(0.3, 0.5) * own
        top = 1.75 * own
        y = max(feet - height_of(person) * own, top) if whole else rng.uniform(1.0, 1.15) * top
        placements.append(Placement(slot * (index + 0.5 + rng.uniform(-0.05, 0.05)), y, own, rng.uniform(-3, 3)))
    scene = Scene(people, tuple(placements), rng.choice(list(BACKGROUND_COLOURS)), FULL_BODY, width, height)
    return Figures(scene, tuple(sample_stance(rng, person, pose) for person in people))


def sample_hand(rng: random.Random, size: tuple[int, int]) -> Figures:
    """A picture that one hand fills to a third or more, as the detail pass sees it: the figure is there, and most of
    it outside."""
    width, height = size
    person, side = sample_person(rng), rng.choice((-1, 1))
    stance = sample_stance(rng, person)
    unit = rng.uniform(0.4, 0.65) * min(width, height)
    wrist = arm_joints(person, stance, side)[2]
    x, y = along(wrist, stance.arms[(side + 1) // 2].fore, 0.75 * HAND, side)
    place = Placement(width * rng.uniform(0.4, 0.6) - x * unit, height * rng.uniform(0.4, 0.6) - y * unit, unit, 0.0)
    scene = Scene((person,), (place,), rng.choice(list(BACKGROUND_COLOURS)), HAND_CLOSE_UP, width, height)
    return Figures(scene, (stance,), side)


def sample_training_figures(rng: random.Random, size: tuple[int, int]) -> Figures:
    """Figures whose people all have combinations of colours that are not held out; often all do the same."""
    while True:
        pose = rng.choice(("hanging", "waving", "raised", "pointing", "hip")) if rng.random() < TOGETHER else None
        figures = sample_figures(rng, size, pose)
        if not any(is_held_out(person, figures.scene.background) for person in figures.scene.people):
            return figures
