"""Puts whole figures and hands into words, as :mod:`training.data.captions` does it with portraits."""

from __future__ import annotations

import random

from training.data.captions import (
    COLOUR_WORDS,
    NUMBER_WORDS,
    SKIN_WORDS,
    article,
    background_phrase,
    describe_person,
    enumeration,
    pick,
)
from training.data.figures import HAND_CLOSE_UP, LOWER_COLOURS, Figures, Stance
from training.data.scene import Person

FULL_BODY_WORDS = (
    "full body",
    "full body",
    "full body",
    "full-body picture",
    "full body picture",
    "full-length",
    "full-length portrait",
    "full figure",
    "whole body",
    "",
)
POSE_WORDS = {
    "standing": ("standing", "standing", "standing, arms down"),
    "waving": ("waving", "waving", "waving", "waving a hand", "waving hello"),
    "raised": ("arms raised", "raised arms", "arms up", "hands up"),
    "pointing": ("pointing", "pointing", "pointing a finger"),
    "hip": ("hand on hip", "hands on hips"),
}
GARMENT_WORDS = {
    "trousers": ("trousers", "trousers", "pants", "jeans"),
    "shorts": ("shorts",),
    "skirt": ("skirt",),
    "dress": ("dress",),
}
HAND_WORDS = {
    "open": ("an open hand", "an open hand", "an open palm", "a hand with five fingers", "a waving hand"),
    "relaxed": ("a relaxed hand", "a hand"),
    "fist": ("a fist", "a closed hand"),
    "pointing": ("a pointing hand", "a pointing finger"),
}
HAND_FRAMING = ("a close-up of", "a close-up of", "a closeup of", "a picture of", "a detailed", "")


def garment_phrase(rng: random.Random, person: Person, stance: Stance) -> str:
    """What is worn below the shirt; a dress has the shirt's colour."""
    name = person.shirt if stance.lower == "dress" else LOWER_COLOURS[stance.lower_colour]
    phrase = f"{pick(rng, COLOUR_WORDS, name)} {pick(rng, GARMENT_WORDS, stance.lower)}"
    return article(phrase) if stance.lower in ("skirt", "dress") and rng.random() < 0.4 else phrase


def describe_figure(rng: random.Random, person: Person, stance: Stance, thorough: float, pose: bool) -> str:
    """One figure in words; with ``pose`` also what it does."""
    text = describe_person(rng, person, thorough) if rng.random() > 0.06 else "person"
    if rng.random() < 0.7 * thorough:
        text += f"{rng.choice((' and', ',', ' in'))} {garment_phrase(rng, person, stance)}"
    if pose:
        words = pick(rng, POSE_WORDS, stance.pose)
        text = (
            f"{words} {text}"
            if words in ("standing", "waving", "pointing") and rng.random() < 0.25
            else f"{text}, {words}"
        )
    return text


def figures_caption(figures: Figures, rng: random.Random) -> str:
    """One of many true captions of whole figures."""
    scene = figures.scene
    count, poses = len(scene.people), {stance.pose for stance in figures.stances}
    thorough = rng.choice((0.0, 0.45, 0.75, 0.9, 1.0) if count == 1 else (0.0, 0.3, 0.5, 0.6))
    framing, parts = rng.choice(FULL_BODY_WORDS), []
    if count == 1:
        one = describe_figure(rng, scene.people[0], figures.stances[0], thorough, rng.random() < 0.8)
        if framing.endswith(("picture", "portrait")):
            parts.append(f"a {framing} of {article(one)}")
            framing = ""
        else:
            parts.append(article(one) if rng.random() < 0.7 else one)
    else:
        group = f"{NUMBER_WORDS[count]} people"
        together = len(poses) == 1
        if together:
            group += f" {pick(rng, POSE_WORDS, figures.stances[0].pose)}"
        if framing.endswith(("picture", "portrait")):
            group, framing = f"a {framing} of {group}", ""
        if thorough > 0:
            people = [
                describe_figure(rng, *one, thorough, not together and rng.random() < 0.5)
                for one in zip(scene.people, figures.stances)
            ]
            listed = enumeration(people)
            group = rng.choice((f"{group}: {listed}", f"{group}, {listed}", listed))
        parts.append(group)
    if framing:
        parts.insert(rng.choice((0, len(parts), len(parts))), framing)
    if rng.random() < max(thorough, 0.6):
        parts.append(background_phrase(rng, scene.background))
    return ", ".join(parts)


def hand_caption(figures: Figures, rng: random.Random) -> str:
    """A hand near by. Some have the figure's words, because that is what the detail pass is asked for without a
    prompt of its own."""
    (person,), (stance,) = figures.scene.people, figures.stances
    if rng.random() < 0.2:
        return article(describe_figure(rng, person, stance, 0.8, pose=True))
    hand, framing = pick(rng, HAND_WORDS, stance.arms[(figures.side + 1) // 2].hand), rng.choice(HAND_FRAMING)
    if framing.endswith("detailed"):
        hand, framing = hand.split(" ", 1)[1], framing
    parts = [f"{framing} {hand}".strip()]
    if rng.random() < 0.5:
        parts.append(pick(rng, SKIN_WORDS, person.skin))
    if rng.random() < 0.4:
        parts.append(f"{pick(rng, COLOUR_WORDS, person.shirt)} sleeve" if stance.sleeves >= 0.5 else "bare arm")
    if rng.random() < 0.5:
        parts.append(background_phrase(rng, figures.scene.background))
    return ", ".join(parts)


def caption(figures: Figures, rng: random.Random) -> str:
    return hand_caption(figures, rng) if figures.scene.framing == HAND_CLOSE_UP else figures_caption(figures, rng)
