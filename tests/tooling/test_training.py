"""The drawings, their words, and the measure that judges the small models."""

from __future__ import annotations

import random
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import training.all
from modules.detection.detections import Detections, rectangle_masks
from training.data import figure_captions
from training.data.captions import caption
from training.data.drawing import draw_scene, face_boxes
from training.data.figure_drawing import draw_figures
from training.data.figures import LOWER_COLOURS, POSES, Figures, sample_figures, sample_hand, sample_training_figures
from training.data.held_out import held_out_figures, held_out_things
from training.data.scene import (
    ASPECTS,
    BACKGROUND_COLOURS,
    LANDSCAPES,
    SHIRT_COLOURS,
    Placement,
    is_held_out,
    sample_scene,
    sample_training_scene,
)
from training.data.things import THINGS
from training.evaluation.adherence import chest, count_persons, held_out_prompts, measure, nearest_colour
from training.evaluation.subject_classifier import IGNORED, read_classifier, samples


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
    assert not any(
        is_held_out(person, scene.background)
        for scene in (sample_training_scene(rng) for _ in range(300))
        for person in scene.people
    )
    assert len(held_out_prompts()) == 40


def test_the_measure_reads_drawings_right() -> None:
    """What is measured from pixels must be what was drawn, or a figure about the models would mean nothing."""
    rng, right, asked = random.Random(6), 0, 0
    for _ in range(60):
        scene = sample_scene(rng, (256, 256))
        person = replace(scene.people[0], hat=None, hair_length="short")
        place = Placement(128 + rng.uniform(-15, 15), 100, rng.uniform(45, 70), rng.uniform(-6, 6))
        background = rng.choice(list(BACKGROUND_COLOURS))
        scene = replace(scene, people=(person,), placements=(place,), background=background)
        seen = measure(draw_scene(scene), np.array(face_boxes(scene)[0]))
        truth = {"background": scene.background, "hair": person.hair_colour, "shirt": person.shirt}
        assert seen.keys() == truth.keys() and seen["background"] in BACKGROUND_COLOURS
        right += sum(seen[name] == truth[name] for name in truth)
        asked += 3
    assert right / asked > 0.97


def test_the_classifier_reads_drawings_right() -> None:
    """As of the measure of colours."""
    pictures, labels = samples(150, seed=99)
    with torch.no_grad():
        answers = torch.stack([logits.argmax(1) for logits in read_classifier()(pictures)], dim=1)
    for right, asked in zip((answers == labels).sum(0), (labels != IGNORED).sum(0), strict=True):
        assert asked > 50 and right / asked > 0.96


def test_prompts_for_things_ask_for_every_one_and_name_what_is_counted() -> None:
    prompts = held_out_things()
    assert {asked["kind"] for _, asked in prompts} == {*THINGS, *LANDSCAPES}
    for prompt, asked in prompts:
        assert all(word in prompt.lower() for word in asked.values())
        assert any(colour in prompt.lower().split() for colour in BACKGROUND_COLOURS) == ("background" in asked)


# Whole figures and hands


def seen_as_drawn(figures: Figures) -> Detections:
    boxes = np.array(draw_figures(figures).person_boxes, np.float64).reshape(-1, 4)
    return Detections(boxes, rectangle_masks(boxes, (figures.scene.width, figures.scene.height)), np.ones(len(boxes)))


def test_a_caption_of_figures_says_nothing_that_is_not_in_the_picture() -> None:
    rng = random.Random(8)
    for _ in range(300):
        figures = sample_figures(rng)
        text, poses = figure_captions.caption(figures, rng), [stance.pose for stance in figures.stances]
        assert ("waving" not in text) or "waving" in poses
        assert ("arms raised" not in text) or "raised" in poses
        assert ("skirt" not in text) or any(stance.lower == "skirt" for stance in figures.stances)
        for number, word in ((2, "two people"), (3, "three people"), (4, "four people")):
            assert (word not in text) or len(figures.scene.people) == number


def test_everybody_does_the_same_where_the_caption_says_so() -> None:
    rng = random.Random(9)
    together = [
        figures
        for figures in (sample_training_figures(rng, (256, 256)) for _ in range(200))
        if len(figures.scene.people) > 1
    ]
    same = [figures for figures in together if len({stance.pose for stance in figures.stances}) == 1]
    assert len(same) > 0.3 * len(together) and {
        stance.pose for figures in together for stance in figures.stances
    } <= set(POSES)
    assert not any(
        is_held_out(person, figures.scene.background) for figures in together for person in figures.scene.people
    )
    assert all(stance.lower_colour in LOWER_COLOURS for figures in together for stance in figures.stances)


def test_a_picture_of_a_hand_shows_it_large_and_whole() -> None:
    rng, whole = random.Random(10), 0
    for _ in range(30):
        figures = sample_hand(rng, (256, 256))
        boxes = draw_figures(figures).hands
        large = [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) > 40 * 40]
        whole += any(box[0] > 0 and box[1] > 0 and box[2] < 256 and box[3] < 256 for box in large)
    assert whole > 24


def test_the_measure_of_figures_reads_drawings_right() -> None:
    rng = random.Random(11)
    drawn = [sample_training_figures(rng, (256, 256)) for _ in range(60)]
    prompts = [
        ("", {"people": str(len(figures.scene.people)), "background": figures.scene.background}) for figures in drawn
    ]
    right = count_persons(
        [seen_as_drawn(figures) for figures in drawn], [draw_figures(figures).image for figures in drawn], prompts
    )
    assert right["background"] > 55 and right["people"] > 55  # somebody may stand behind another
    single = [
        figures
        for figures in drawn
        if len(figures.scene.people) == 1 and figures.scene.placements[0].y + 5 * figures.scene.placements[0].size < 256
    ]
    shirts = [
        nearest_colour(
            chest(np.asarray(draw_figures(figures).image).astype(int), seen_as_drawn(figures).boxes[0]), SHIRT_COLOURS
        )
        for figures in single
    ]
    assert sum(seen == figures.scene.people[0].shirt for seen, figures in zip(shirts, single)) > 0.8 * len(single) > 5


def test_held_out_figures_ask_for_one_to_four() -> None:
    prompts = held_out_figures()
    assert len(prompts) == 40 and {asked["people"] for _, asked in prompts} == {"1", "2", "3", "4"}
    assert all(("a shirt" in text or " shirt" in text) == ("shirt" in asked) for text, asked in prompts)


def test_every_step_of_a_whole_training_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: list[str] = []
    monkeypatch.setattr(training.all, "run_step", lambda name, work, module, *options: modules.append(module))
    monkeypatch.setattr(shutil, "copy", lambda source, target: None)
    monkeypatch.setattr(sys, "argv", ["training.all", "--work", str(tmp_path)])
    training.all.main()
    assert len(modules) > 10
    assert [module for module in modules if find_spec(f"training.{module}") is None] == []
