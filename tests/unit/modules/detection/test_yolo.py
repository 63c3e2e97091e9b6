"""Detection with the real ultralytics and our trained face detector: what is found. Its files are in
test_detector_files.py."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.detections import WEIGHTS, assert_equal, predicted

from modules.detection.detections import Detections, bounding_box, rectangle_masks
from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics, without_contained
from training.data.detector_samples import KINDS, draw_faces, soften
from training.data.drawing import draw_scene
from training.data.scene import sample_scene
from training.data.shapes import Box
from training.evaluation.detector_score import score
from training.models.detector import SEGMENTING, evaluate, export

Samples = tuple[list[Image.Image], list[list[Box]]]
"""Pictures, and the face boxes of each."""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(scope="module")
def weights() -> Path:
    return WEIGHTS


@pytest.fixture(scope="module")
def detector(weights: Path) -> Detector:
    return Detector(load_detector_network(weights))


@pytest.fixture(scope="module")
def segmenter() -> Any:
    """A segmentation network of two classes that nobody has trained, eager to find things."""
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    network: Any = SegmentationModel(deepcopy(SEGMENTING), nc=2, verbose=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass makes the norms fit, so that signals reach the head
    network.train()(torch.rand(4, 3, 160, 160))
    for scores in network.model[-1].cv3:
        torch.nn.init.normal_(scores[-1].weight, std=0.5)
        torch.nn.init.zeros_(scores[-1].bias)
    return network.eval()


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = Random(4711)
    drawn = [draw_faces(rng) for _ in range(24)]
    return [sample.image for sample in drawn], [sample.boxes for sample in drawn]


# What is found


def test_faces_are_found_where_they_were_drawn(detector: Detector, samples: Samples) -> None:
    images, truth = samples
    figures = score(detector.detect(images, 0.3), truth)
    assert figures["recall"] >= 0.9 and figures["precision"] >= 0.9 and figures["median_confidence"] > 0.5, figures


def test_faces_are_found_in_soft_and_noisy_pictures(detector: Detector, samples: Samples) -> None:
    rng = Random(1)
    figures = score(detector.detect([soften(image, rng) for image in samples[0]], 0.3), samples[1])
    assert figures["recall"] >= 0.8 and figures["precision"] >= 0.8, figures


@pytest.mark.parametrize(
    ("kind", "variant", "least"),
    [
        ("hand", "drawn", {"map50": 0.7, "recall": 0.6, "precision": 0.8}),
        ("hand", "softened", {"map50": 0.55, "precision": 0.8}),
        ("person", "drawn", {"map50": 0.95, "recall": 0.9, "mask_map50": 0.93, "mask_iou": 0.75}),
        ("person", "softened", {"map50": 0.9, "mask_map50": 0.85}),
    ],
)
def test_hands_and_persons_are_found_on_drawings_that_no_training_saw(
    figures: dict[str, Any], kind: str, variant: str, least: dict[str, float]
) -> None:
    assert all(figures[kind][variant][name] >= value for name, value in least.items()), figures[kind][variant]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return {
        kind: evaluate(Detector(load_detector_network(WEIGHTS.with_stem(f"{kind}_detector"))), KINDS[kind], 0, count=40)
        for kind in ("hand", "person")
    }


def test_a_person_has_a_mask_of_its_own_shape() -> None:
    """The mask lies in the box and leaves most of the background out of it."""
    sample = next(sample for sample in map(KINDS["person"].draw, map(Random, range(99))) if len(sample.boxes) == 1)
    (found,) = Detector(load_detector_network(WEIGHTS.with_stem("person_detector"))).detect([sample.image], 0.3)
    x1, y1, x2, y2 = found.boxes[0]
    inside, truth = found.masks[0] > 0, sample.masks[0] > 0
    assert (inside & truth).sum() / (inside | truth).sum() > 0.75
    assert inside.sum() < 0.8 * (x2 - x1) * (y2 - y1)


def test_a_large_picture_gives_large_boxes(detector: Detector) -> None:
    scene = sample_scene(Random(5), (256, 256))
    (small,), (large,) = detector.detect([draw_scene(scene)], 0.5), detector.detect([draw_scene(scene, scale=4)], 0.5)
    assert len(small) == len(large) == len(scene.people)
    assert np.abs(large.boxes / 4 - small.boxes).max() < 6
    assert large.masks.shape[1:] == (1024, 1024)


def test_every_result_keeps_the_promises_of_detections(detector: Detector, samples: Samples) -> None:
    for image, found in zip(samples[0], detector.detect(samples[0], 0.1)):
        assert found.masks.shape == (len(found), image.height, image.width) and found.masks.dtype == np.uint8
        assert (found.boxes >= 0).all() and (found.boxes <= [*image.size, *image.size]).all()
        assert (found.confidences > 0.1).all() and (np.diff(found.confidences) <= 0).all()
        assert np.array_equal(found.masks, rectangle_masks(found.boxes, image.size))


def test_nothing_is_found_in_an_empty_picture(detector: Detector) -> None:
    (found,) = detector.detect([Image.new("RGB", (160, 120), "teal")], 0.3)
    assert len(found) == 0
    assert found.masks.shape == (0, 120, 160)


def test_no_pictures_no_results(detector: Detector) -> None:
    assert detector.detect([], 0.3) == []


def test_a_picture_gives_the_same_alone_and_in_any_batch(detector: Detector, samples: Samples) -> None:
    for image, together in zip(samples[0], detector.detect(samples[0], 0.3)):
        assert_equal(together, detector.detect([image], 0.3)[0], tolerance=1e-2)


# Against ultralytics' own predictor


@pytest.mark.parametrize("size", [(256, 256), (384, 160), (160, 384), (333, 217)])
def test_boxes_are_those_of_ultralytics(
    detector: Detector, weights: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = load_detector_network(weights)
    image = draw_scene(sample_scene(Random(8), size))
    theirs = predicted(network, image, max(detector.size), 0.05, monkeypatch)
    assert len(theirs) > 0
    network.args["containment"] = 1.0  # as of any detector but our own of faces
    assert_equal(Detector(network).detect([image], 0.05)[0], theirs, tolerance=1e-3)


def contained(found: Detections) -> list[tuple[int, int]]:
    """The pairs of boxes of which one lies in the other by more than 0.8 of its area."""
    pairs = []
    for one, other in combinations(range(len(found)), 2):
        a, b = found.boxes[one], found.boxes[other]
        shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
        if shared > 0.81 * min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()):
            pairs.append((one, other))
    return pairs


def test_our_detector_finds_no_face_twice(weights: Path, samples: Samples) -> None:
    network: Any = load_detector_network(weights)
    once = Detector(network).detect(samples[0], 0.01)
    network.args["containment"] = 1.0
    twice = Detector(network).detect(samples[0], 0.01)
    assert not any(map(contained, once)) and any(map(contained, twice))
    for ours, all_boxes in zip(once, twice, strict=True):
        assert (ours.boxes[:1] == all_boxes.boxes[:1]).all()  # the most confident one stays


@pytest.mark.parametrize(
    ("boxes", "kept"),
    [
        ([(0, 0, 100, 100), (10, 10, 60, 60)], [0]),
        ([(10, 10, 60, 60), (0, 0, 100, 100)], [0]),
        ([(0, 0, 100, 100), (50, 0, 110, 100)], [0]),
        ([(0, 0, 100, 100), (70, 0, 130, 100)], [0, 1]),
        ([(0, 0, 10, 10), (20, 20, 30, 30), (0, 0, 40, 40)], [0, 1]),
        ([], []),
    ],
)
def test_of_two_boxes_one_in_the_other_the_first_stays(boxes: list[tuple[float, ...]], kept: list[int]) -> None:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    assert without_contained(tensor, 0.8) == kept
    assert without_contained(tensor, 1.0) == list(range(len(boxes)))


@pytest.mark.parametrize("size", [(320, 200), (150, 290)])
def test_masks_are_those_of_ultralytics_with_retina_masks(
    segmenter: torch.nn.Module, tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(segmenter, tmp_path / "persons.safetensors", SEGMENTING, "segment", ["person", "dog"], 160)
    network, image = load_detector_network(tmp_path / "persons.safetensors"), draw_scene(sample_scene(Random(9), size))
    ranked = np.sort(Detector(network).detect([image], 0.0)[0].confidences)
    confidence = float(ranked[-21:-19].mean())  # between two, so that rounding decides nothing
    theirs = predicted(network, image, 160, confidence, monkeypatch)
    assert 0 < len(theirs) < 30
    assert_equal(Detector(network).detect([image], confidence)[0], theirs, tolerance=1e-3)


class Says(torch.nn.Module):
    """A network that always says the same of a picture fitted into 160 pixels."""

    def __init__(self, output: Any, classes: int = 1, end2end: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.args, self.stride, self.model, self.end2end = (
            {"imgsz": 160},
            torch.tensor([8.0, 16.0]),
            [SimpleNamespace(nc=classes)],
            end2end,
        )
        self.output = output

    def forward(self, pixels: torch.Tensor) -> Any:
        assert pixels.shape == (1, 3, 64, 160)
        return self.output, {}


def test_a_mask_is_not_stretched_by_the_letterbox() -> None:
    """A picture of 320 x 100 is fitted into 160 x 50 and gets bars of 7 pixels above and below.

    ADetailer resizes the mask with its bars: what lies at 20..80 came out at 27..73 here, and up to 36 pixels off
    elsewhere.
    """
    prototype = torch.full((1, 1, 16, 40), -1.0)
    prototype[..., 17 // 4 : 47 // 4 + 1, 50 // 4 : 90 // 4 + 1] = 1.0
    object_and_coefficient = torch.tensor([[70.0, 32, 40, 30, 0.9, 1.0]]).T[None]
    (found,) = Detector(Says((object_and_coefficient, prototype))).detect([Image.new("RGB", (320, 100))], 0.3)
    assert found.boxes.tolist() == [[100, 20, 180, 80]]
    assert np.abs(np.subtract(bounding_box(found.masks[0]) or (), (100, 20, 180, 80))).max() <= 1


def test_a_box_hides_only_those_of_its_own_class() -> None:
    sees = torch.tensor(
        [
            [70.0, 32, 40, 30, 0.1, 0.8],
            [70, 32, 40, 30, 0.9, 0.2],
            [71, 32, 40, 30, 0.7, 0.1],
            [100, 32, 40, 30, 0.6, 0.1],
        ]
    )
    (found,) = Detector(Says(sees.T[None], classes=2)).detect([Image.new("RGB", (320, 100))], 0.3)
    assert found.confidences.tolist() == pytest.approx([0.9, 0.8, 0.6])


def test_a_network_that_suppresses_by_itself_is_believed() -> None:
    sees = torch.tensor([[50.0, 17, 90, 47, 0.9, 0], [50, 17, 91, 47, 0.8, 1], [0, 7, 9, 9, 0.2, 0]])
    detector, images = Detector(Says(sees[None], end2end=True)), [Image.new("RGB", (320, 100))]
    assert detector.detect(images, 0.3)[0].boxes.tolist() == [[100, 20, 180, 80], [100, 20, 182, 80]]
    assert detector.detect(images, 0.3, classes=[1])[0].boxes.tolist() == [[100, 20, 182, 80]]


def test_only_the_wanted_classes_are_found() -> None:
    sees = torch.tensor([[70.0, 32, 40, 30, 0.1, 0.8, 0], [70, 32, 40, 30, 0.9, 0.2, 0], [20, 32, 20, 20, 0, 0, 0.7]])
    detector, images = Detector(Says(sees.T[None], classes=3)), [Image.new("RGB", (320, 100))]
    for wanted, confidences in ((None, [0.9, 0.8, 0.7]), ([0, 2], [0.9, 0.7]), ([1], [0.8])):
        assert detector.detect(images, 0.3, wanted)[0].confidences.round(1).tolist() == confidences


def test_torchvision_may_have_been_imported(detector: Detector) -> None:
    """ultralytics' own suppression then calls torchvision's wrapper, which refuses to run beside a CPU build of
    torch."""
    import torchvision  # type: ignore[import-untyped]  # noqa: F401

    assert len(detector.detect([draw_scene(sample_scene(Random(5), (256, 256)))], 0.5)[0]) > 0


# The network belongs to a model cache


@pytest.mark.parametrize(("imgsz", "size"), [(160, (160, 160)), (250, (256, 256)), ([96, 100], (96, 128))])
def test_a_network_is_used_at_the_size_of_its_training(
    weights: Path, imgsz: int | list[int], size: tuple[int, int]
) -> None:
    network = load_detector_network(weights)
    network.args = {"imgsz": imgsz}  # type: ignore[assignment]
    assert Detector(network).size == size


def test_a_detector_follows_its_network(weights: Path) -> None:
    """Parameters may be moved one by one, as a cache does that keeps host copies; nothing else may stay behind."""
    network: Any = load_detector_network(weights)
    detector, image = Detector(network), draw_scene(sample_scene(Random(5), (256, 256)))
    (before,) = detector.detect([image], 0.3)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.double()
    network.model[-1].anchors = network.model[-1].anchors.to(
        "meta"
    )  # what ultralytics keeps of a call is now elsewhere
    (after,) = detector.detect([image], 0.3)
    assert_equal(after, before, tolerance=1e-2)
