"""Puts things and landscapes into words, in the many ways in which people write prompts."""

from __future__ import annotations

import random

from training.data.captions import COLOUR_WORDS, NUMBER_WORDS, article, background_phrase, pick
from training.data.things import Things

THING_WORDS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "cat", "cat", "kitten", "sitting cat"),
    "dog": ("dog", "dog", "dog", "puppy", "sitting dog"),
    "house": ("house", "house", "small house", "home"),
    "flower": ("flower", "flower", "blossom"),
    "tree": ("tree",),
    "car": ("car", "car", "automobile"),
    "bowl of fruit": ("bowl of fruit", "bowl with fruit", "fruit bowl"),
}
PLURALS: dict[str, str] = {
    "kitten": "kittens",
    "puppy": "puppies",
    "bowl of fruit": "bowls of fruit",
    "bowl with fruit": "bowls with fruit",
}
LANDSCAPE_WORDS: dict[str, tuple[str, ...]] = {
    "mountain landscape": ("mountain landscape", "mountain landscape", "landscape with mountains", "mountains"),
    "beach": ("beach", "beach", "beach with a palm", "tropical beach"),
    "city at night": ("city at night", "city at night", "city skyline at night", "night city"),
}
FRAMINGS = ("", "", "", "a picture of", "a drawing of", "an illustration of", "a photo of")


def sunset(things: Things) -> bool:
    """Whether the landscape is drawn at sunset (see ``training.data.landscapes``)."""
    return things.kind in ("mountain landscape", "beach") and things.style % 3 == 0


def landscape_caption(things: Things, rng: random.Random) -> str:
    words = pick(rng, LANDSCAPE_WORDS, things.kind)
    text = words if words.endswith("mountains") and not words.startswith("landscape") else article(words)
    if things.kind != "city at night" and rng.random() < 0.7:
        text += rng.choice((" at sunset", ", sunset")) if sunset(things) else rng.choice((" by day", ", sunny day"))
    framing = rng.choice(FRAMINGS)
    return f"{framing} {text}".strip()


def thing_caption(things: Things, rng: random.Random) -> str:
    noun, count = pick(rng, THING_WORDS, things.kind), len(things.places)
    colour = pick(rng, COLOUR_WORDS, things.colour or "") if rng.random() < 0.85 else ""
    if count > 1:
        plural = PLURALS.get(noun, f"{noun}s")
        text = f"{NUMBER_WORDS[count]} {colour} {plural}".replace("  ", " ")
    else:
        text = f"{colour} {noun}".strip()
        text = article(text) if rng.random() < 0.8 else text
    framing = rng.choice(FRAMINGS)
    text = f"{framing} {text}".strip()
    if things.background and rng.random() < 0.75:
        background = background_phrase(rng, things.background)
        joint = rng.choice((", ", ", ", " on ", " in front of "))
        if joint != ", " and not background.startswith(("a ", "an ")):
            background = article(background)
        text += joint + background
    return text


def caption(things: Things, rng: random.Random) -> str:
    """One of many true captions of things or of a landscape."""
    return thing_caption(things, rng) if things.places else landscape_caption(things, rng)
