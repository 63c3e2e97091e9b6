"""Things and landscapes: drawings, captions, and what the text encoders are asked about them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from training.data.captions import COLOUR_WORDS, background_phrase
from training.data.drawing import draw_scene
from training.data.scene import BACKGROUND_COLOURS, LANDSCAPES, sample_training_scene
from training.data.thing_captions import caption, sunset
from training.data.thing_drawing import draw_things
from training.data.things import THINGS, Things, sample_things
from training.models.text_encoders import BACKGROUNDS, IGNORED, SHOWN, THING_COLOURS, answers, questions

SQUARE = (256, 256)


def sampled(kind: str, seed: int = 0) -> Things:
    rng = random.Random(seed)
    while (things := sample_things(rng, SQUARE)).kind != kind:
        pass
    return things


@pytest.mark.parametrize("kind", THINGS)
def test_a_thing_is_seen_in_its_colour_before_its_background(kind: str) -> None:
    for colour, rgb in THINGS[kind].items():
        things = replace(sampled(kind), colour=colour)
        picture = np.asarray(draw_things(things)).astype(int)
        assert (np.abs(picture - rgb).max(axis=2) < 12).mean() > 0.01, f"no {colour} in the picture of a {kind}"
        assert things.background is not None
        assert np.abs(picture[2, 2] - BACKGROUND_COLOURS[things.background]).max() < 3


@pytest.mark.parametrize("kind", [*THINGS, *LANDSCAPES])
def test_things_are_drawn_the_same_every_time_and_at_every_scale(kind: str) -> None:
    things = sampled(kind, 3)
    once, large = np.asarray(draw_things(things)), draw_things(things, scale=2)
    assert np.array_equal(once, np.asarray(draw_things(things)))
    assert np.abs(np.asarray(large.resize(SQUARE)).astype(int) - once).mean() < 2.5


def test_a_caption_says_nothing_that_is_not_in_the_picture() -> None:
    rng = random.Random(5)
    for _ in range(300):
        things = sample_things(rng, SQUARE)
        words = caption(things, rng).lower().replace(",", "").split()
        assert len(words) <= 30
        told = {name for name in BACKGROUND_COLOURS for word in COLOUR_WORDS.get(name, (name,)) if word in words}
        assert told <= {things.colour, things.background}
        numbers = {"two": 2, "three": 3}
        assert all(numbers[word] == len(things.places) for word in words if word in numbers)
        assert "sunset" not in words or sunset(things)


def test_people_stand_before_landscapes_too() -> None:
    rng = random.Random(2)
    scenes = [sample_training_scene(rng, SQUARE) for _ in range(200)]
    found = {scene.background: scene for scene in scenes if scene.background in LANDSCAPES}
    assert set(found) == set(LANDSCAPES)
    for name, scene in found.items():
        assert len({tuple(pixel) for pixel in np.asarray(draw_scene(scene))[::4, 2]}) > 1
        assert any(word in background_phrase(rng, name) for word in ("mountains", "beach", "city"))


def test_the_text_encoders_are_asked_what_is_shown() -> None:
    things, landscape = sampled("cat"), sampled("beach")
    asked = questions()
    for subject in (things, landscape):
        given = answers(subject)
        assert len(given) == len(asked)
        assert all(answer == IGNORED or 0 <= answer < count for answer, count in zip(given, asked, strict=True))
    background, _, _, shown, colour, light = answers(things)[-6:]
    assert (BACKGROUNDS[background], SHOWN[shown], THING_COLOURS[colour], light) == (
        things.background,
        "cat",
        things.colour,
        IGNORED,
    )
    assert answers(landscape)[-6:][0] == IGNORED
