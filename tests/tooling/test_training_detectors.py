"""The drawings that detectors are trained on, their labels, and the measures that judge the result."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import cv2
import numpy as np
import pytest

from modules.detection.detections import Detections, Mask, rectangle_masks
from training.data.detector_samples import KINDS, Sample, label_lines, outline, soften
from training.data.drawing import draw_scene
from training.data.figure_drawing import draw_figures, draw_portraits
from training.data.figures import Figures, sample_figures
from training.data.scene import sample_scene
from training.data.shapes import Box
from training.evaluation.detector_score import average_precision, mask_overlap, median_overlap, overlap, score


def figures(seed: int) -> Figures:
    return sample_figures(Random(seed))


def fraction(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_figures_are_drawn_the_same_every_time() -> None:
    first, second = draw_figures(figures(1)), draw_figures(figures(1))
    assert first.image == second.image and first.hands == second.hands
    assert {len(figures(seed).scene.people) for seed in range(40)} == {1, 2, 3, 4}


def test_boxes_and_masks_lie_in_the_picture() -> None:
    for seed in range(12):
        drawn = draw_figures(figures(seed))
        assert all(
            mask.shape == (drawn.image.height, drawn.image.width) and set(np.unique(mask)) == {0, 255}
            for mask in drawn.persons
        )
        assert not np.bitwise_and.reduce([*drawn.persons, drawn.persons[0] ^ 255]).any() or len(drawn.persons) == 1
        for x1, y1, x2, y2 in (*drawn.hands, *drawn.person_boxes):
            assert 0 <= x1 < x2 <= drawn.image.width and 0 <= y1 < y2 <= drawn.image.height


def test_a_person_is_where_the_mask_says() -> None:
    """Without the person the picture differs there, and but for the shadow on the ground nowhere else."""
    for seed in range(30):
        scene = figures(seed)
        if len(scene.scene.people) != 1:
            continue
        drawn = draw_figures(scene)
        empty = draw_figures(Figures(replace(scene.scene, people=(), placements=()), ()))
        differs = (np.asarray(drawn.image).astype(int) != np.asarray(empty.image)).any(axis=2)
        bottom = drawn.person_boxes[0][3] - 2 * scene.scene.placements[0].size
        assert fraction(differs[: int(bottom)], (drawn.persons[0] > 0)[: int(bottom)]) > 0.93


def test_hands_belong_to_persons() -> None:
    for seed in range(8):
        drawn = draw_figures(figures(seed))
        everybody = np.bitwise_or.reduce(drawn.persons) > 0
        for x1, y1, x2, y2 in drawn.hands:
            assert everybody[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1].mean() > 0.2


def test_a_hand_behind_somebody_is_not_asked_for() -> None:
    """Two figures at one place: what the one in front hides is no label."""
    scene = next(one for one in map(figures, range(99)) if len(one.scene.people) == 2)
    first, second = scene.scene.placements
    apart = len(draw_figures(scene).hands)
    behind = replace(
        scene.scene, placements=(replace(first, x=second.x, y=second.y - 1), replace(second, size=2.2 * second.size))
    )
    assert len(draw_figures(replace(scene, scene=behind)).hands) < apart


def test_portraits_are_the_pictures_that_the_other_models_are_trained_on() -> None:
    for seed in range(4):
        scene = sample_scene(Random(seed))
        drawn = draw_portraits(scene)
        assert drawn.image == draw_scene(scene) and len(drawn.persons) == len(scene.people) and not drawn.hands


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_has_a_label_for_each_box(kind: str) -> None:
    rng = Random(6)
    for _ in range(10):
        sample = KINDS[kind].draw(rng)
        assert len(label_lines(sample).splitlines()) == len(sample.boxes) and len(sample.masks) in (
            0,
            len(sample.boxes),
        )
        assert soften(sample.image, rng).size == sample.image.size


def ring() -> Mask:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:40, 5:40] = 255
    mask[15:30, 15:30] = 0  # a hole
    mask[45:57, 10:30] = 255  # loose parts
    mask[20:50, 50:75] = 255
    return mask


@pytest.mark.parametrize("mask", [ring(), *draw_figures(figures(3)).persons])
def test_an_outline_filled_is_the_mask_again(mask: Mask) -> None:
    points = np.array(outline(mask)) * [mask.shape[1], mask.shape[0]] - 0.5
    filled = cv2.fillPoly(np.zeros_like(mask), [points.round().astype(np.int32)], 255)
    assert fraction(filled > 0, mask > 0) > 0.9


def test_a_label_holds_the_mask_of_its_box() -> None:
    sample = Sample(draw_figures(figures(3)).image, [(5.0, 5.0, 75.0, 57.0)], (ring(),))
    kind, *numbers = label_lines(sample).split()
    assert kind == "0" and len(numbers) % 2 == 0 and all(0 <= float(number) <= 1 for number in numbers)


# Measures


def detections(boxes: list[Box], confidences: list[float]) -> Detections:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Detections(array, rectangle_masks(array, (100, 100)), np.array(confidences))


def test_overlap_of_boxes_and_of_their_masks() -> None:
    a, b = np.array([[0.0, 0, 9, 9]]), np.array([[0.0, 0, 9, 9], [5, 0, 14, 9], [50, 50, 60, 60]])
    assert overlap(a, b).round(3).tolist() == [[1, 0.286, 0]]
    assert mask_overlap(rectangle_masks(a, (70, 70)), rectangle_masks(b, (70, 70))).round(3).tolist() == [[1, 0.333, 0]]


def test_a_second_box_on_an_object_is_wrong() -> None:
    found = detections([(0, 0, 10, 10), (0, 0, 10, 11), (50, 50, 60, 60)], [0.9, 0.8, 0.4])
    assert score([found], [[(0, 0, 10, 10), (80, 80, 90, 90)]]) == {
        "recall": 0.5,
        "precision": 0.3333,
        "median_confidence": 0.9,
        "share_over_half": 1.0,
    }


@pytest.mark.parametrize(
    ("right", "objects", "expected"),
    [
        ([True, True], 2, 1.0),
        ([True, False], 2, 0.5),
        ([False, True], 1, 0.5),
        pytest.param([True, False, True], 2, round((1 + 2 / 3) / 2, 4), id="the area under precision over recall"),
        ([], 3, 0.0),
    ],
)
def test_average_precision(right: list[bool], objects: int, expected: float) -> None:
    overlaps = np.zeros((len(right), objects))
    for row in np.flatnonzero(right):
        overlaps[row, np.count_nonzero(right[:row])] = 0.8
    assert average_precision([overlaps], [np.linspace(0.9, 0.1, len(right))]) == expected
    assert median_overlap([overlaps]) == (0.8 if any(right) else 0.0)
