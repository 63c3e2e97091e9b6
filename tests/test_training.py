"""The drawings, their words, and the measure that judges the small models."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from training.adherence import held_out_prompts, measure
from training.captions import caption
from training.drawing import draw_scene, face_boxes
from training.scene import ASPECTS, BACKGROUND_COLOURS, Placement, is_held_out, sample_scene, sample_training_scene


def test_a_scene_is_drawn_the_same_every_time_and_at_every_scale() -> None:
    scene = sample_scene(random.Random(1))
    once, again, large = draw_scene(scene), draw_scene(scene), draw_scene(scene, scale=2)
    assert np.array_equal(np.asarray(once), np.asarray(again))
    assert large.size == (2 * scene.width, 2 * scene.height)
    assert np.abs(np.asarray(large.reduce(2)).astype(int) - np.asarray(once)).mean() < 2


def test_face_boxes_lie_in_the_picture_and_hold_skin_of_the_face() -> None:
    rng = random.Random(2)
    for _ in range(50):
        scene = sample_scene(rng)
        for x1, y1, x2, y2 in face_boxes(scene):
            assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height


def test_every_shape_is_near_the_native_area() -> None:
    assert all(0.85 < width * height / 256**2 < 1.15 and width % 32 == height % 32 == 0 for width, height in ASPECTS)


def test_a_caption_says_nothing_that_is_not_in_the_picture() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = sample_scene(rng)
        text = caption(scene, rng)
        assert ("glasses" not in text) or any(person.glasses for person in scene.people)
        assert ("beard" not in text) or any(person.beard for person in scene.people)
        assert ("bald" not in text) or any(person.hair_length == "bald" for person in scene.people)
        assert (" hat" not in text and " cap" not in text) or any(person.hat for person in scene.people)


def test_held_out_combinations_are_never_trained_on() -> None:
    rng = random.Random(4)
    assert not any(is_held_out(person, scene.background) for scene in (sample_training_scene(rng) for _ in range(300)) for person in scene.people)
    assert len(held_out_prompts()) == 40


def test_the_measure_reads_drawings_right() -> None:
    """What is measured from pixels must be what was drawn, or a figure about the models would mean nothing."""
    rng, right, asked = random.Random(6), 0, 0
    for _ in range(60):
        scene = sample_scene(rng, (256, 256))
        person = replace(scene.people[0], hat=None, hair_length="short")
        place = Placement(128 + rng.uniform(-15, 15), 100, rng.uniform(45, 70), rng.uniform(-6, 6))
        scene = replace(scene, people=(person,), placements=(place,))
        seen = measure(draw_scene(scene), np.array(face_boxes(scene)[0]))
        truth = {"background": scene.background, "hair": person.hair_colour, "shirt": person.shirt}
        assert seen.keys() == truth.keys() and seen["background"] in BACKGROUND_COLOURS
        right += sum(seen[name] == truth[name] for name in truth)
        asked += 3
    assert right / asked > 0.97
