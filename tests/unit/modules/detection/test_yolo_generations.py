"""Detectors of every generation of ultralytics, from its own descriptions with random weights: saved as its training
saves them, read through our checks, and used with ultralytics' own results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.detections import predicted

from modules.detection.service import task_of
from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics

SIDE = 96


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


def saved(folder: Path, description: str) -> Path:
    """A checkpoint of the smallest model of that description. Its scores are spread, so that some boxes are sure."""
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    torch.manual_seed(0)
    build = SegmentationModel if "-seg" in description else DetectionModel
    network: Any = build(description, nc=3, verbose=False)
    head = network.model[-1]
    for name, parameter in head.named_parameters():
        if "cv3" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.5)
    network.names = {0: "face", 1: "hand", 2: "cat"}
    file = folder / f"{Path(description).stem}.pt"
    torch.save({"model": network.eval().half(), "train_args": {"imgsz": SIDE}}, file)
    return file


@pytest.mark.parametrize(
    "description", ["yolo11n.yaml", "yolo11n-seg.yaml", "yolo12n.yaml", "yolo26n.yaml", "yolo26n-seg.yaml"]
)
def test_a_file_of_this_generation_finds_what_ultralytics_finds(
    description: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = load_detector_network(saved(tmp_path, description))
    assert task_of(network) == ("segment" if "-seg" in description else "detect")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    detector = Detector(network)
    everything = np.sort(detector.detect([image], 0.0)[0].confidences)
    confidence = float(everything[-min(4, len(everything))]) - 1e-4
    [ours] = detector.detect([image], confidence)
    ours = ours.take(np.flatnonzero(ours.masks.any(axis=(1, 2))))  # the detail pass skips the others, and says so
    theirs = predicted(network, image, SIDE, confidence, monkeypatch)
    assert len(ours) >= 1 and detector.size == (SIDE, SIDE)
    assert len(ours) == len(theirs), f"{ours.boxes} {ours.confidences} {theirs.boxes} {theirs.confidences}"
    assert np.abs(ours.boxes - theirs.boxes).max() < 0.01 and np.abs(ours.confidences - theirs.confidences).max() < 1e-4
    assert (ours.masks != theirs.masks).mean() < 0.02, "an edge may lie on either side of a pixel"
