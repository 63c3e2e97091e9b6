"""SAM 2 with random weights in ultralytics' classes: read from its files, and used with ultralytics' own results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.detections import WEIGHTS
from support.people import portraits
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

from backend.core.errors import InputError, WeightsError
from backend.core.settings import Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.detection import sam2
from modules.detection.detections import Detections, rectangle_masks
from modules.detection.sam2 import find_sam2, load_sam2, outlined
from modules.detection.service import DetectionService
from modules.detection.yolo import offline_ultralytics
from modules.request.parser import build_request

SIDE = 512
"""Pixels; half of what the networks are made for, which takes a quarter of the time."""
BOXES = np.array([[10.0, 20, 80, 90], [60, 5, 110, 40]])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ultralytics publishes version 2.1: a checkpoint with the tensors under "model"."""
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))
    from ultralytics.models.sam.build import build_sam2_t

    torch.manual_seed(0)
    tensors = build_sam2_t().state_dict()
    tensors["no_obj_embed_spatial"] = torch.zeros(1, 64)
    file = tmp_path_factory.mktemp("weights") / "sam2.1_t.pt"
    torch.save({"model": tensors}, file)
    return file


@pytest.fixture(scope="module")
def network(file: Path) -> Any:
    loaded: Any = load_sam2(file)
    assert loaded.image_size == sam2.SIDE
    loaded.set_imgsz((SIDE, SIDE))
    return loaded


@pytest.fixture(autouse=True)
def smaller_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam2, "SIDE", SIDE)


def test_masks_are_those_of_ultralytics(network: Any) -> None:
    from ultralytics.models.sam import SAM2Predictor

    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    found = Detections(BOXES, rectangle_masks(BOXES, (128, 96)), np.array([0.9, 0.8]))
    ours = outlined(network, Image.fromarray(pixels), found)
    overrides = {"imgsz": SIDE, "device": "cpu", "save": False, "verbose": False, "conf": 0.0}
    predictor = SAM2Predictor(overrides=overrides)
    predictor.setup_model(network, verbose=False)
    [theirs] = predictor(pixels[..., ::-1].copy(), bboxes=BOXES.tolist())
    masks = theirs.masks.data.numpy().astype(bool)
    assert 0 < masks.mean() < 1 and ours.masks.shape == masks.shape
    assert (masks != (ours.masks > 0)).mean() < 0.002
    assert np.array_equal(ours.boxes, BOXES) and np.array_equal(ours.numbers, found.numbers)


def test_nothing_found_is_nothing_to_outline(network: Any) -> None:
    empty = Detections(np.zeros((0, 4)), np.zeros((0, 96, 128), np.uint8), np.zeros(0))
    assert outlined(network, Image.new("RGB", (128, 96)), empty) is empty


def test_the_best_file_under_weights_is_used(file: Path, tmp_path: Path) -> None:
    settings = replace(Settings(), weights_dir=str(tmp_path))
    assert find_sam2(settings) is None
    for name in ("sam2_t.pt", "sam2.1_t.pt"):
        (tmp_path / name).symlink_to(file)
    found = find_sam2(settings)
    assert found is not None and found.name == "sam2.1_t.pt"


def test_a_detector_is_asked_for_outlines_where_it_is_installed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "sam2.1_t.pt").symlink_to(file)
    models = ModelCache(torch.device("cpu"))
    settings = replace(Settings(), weights_dir=str(tmp_path))
    detectors = DetectionService({"face_detector": WEIGHTS}, settings, models, OomFallback(models))
    for name in models.names():
        models.load(name)
    models.module(sam2.MODEL).set_imgsz((SIDE, SIDE))
    assert detectors.class_sets["face_detector"].outlines
    [picture] = portraits(1, seed=3)
    [boxes], [shapes] = (detectors.detect([picture], 0.3, sam=sam) for sam in (False, True))
    assert len(boxes) >= 1 and np.array_equal(boxes.boxes, shapes.boxes)
    assert not np.array_equal(boxes.masks, shapes.masks)


@pytest.mark.parametrize("content", ["cut off", "another network", "a tensor is missing"])
def test_a_file_that_cannot_be_used_is_named_in_one_line(file: Path, tmp_path: Path, content: str) -> None:
    bad = tmp_path / "sam2.1_t.pt"
    if content == "cut off":
        bad.write_bytes(file.read_bytes()[:100_000])
    elif content == "another network":
        torch.save({"weight": torch.zeros(3)}, bad)
    else:
        tensors = torch.load(file, weights_only=True)["model"]
        del tensors["no_mem_embed"]
        torch.save({"model": tensors}, bad)
    with pytest.raises(WeightsError, match=r"^sam2.1_t.pt: is (damaged or )?not SAM 2"):
        load_sam2(bad)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [('{"ad_sam": true}', "SAM 2 is not installed"), ('{"ad_sam": true, "ad_model": "mask"}', "a detector finds")],
)
def test_a_request_for_it_is_refused_where_it_is_not_there(tmp_path: Path, arguments: str, problem: str) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (64, 64), "white").save(mask)
    given = {**INPUTS, "adetailer": True, "ad_mask": mask, "adetailer_args": arguments, "scale": 1.0}
    with pytest.raises(InputError, match=f"^adetailer_args: ad_sam cannot be honoured: .*{problem}"):
        build_request(given, EMBEDDED, DETECTORS)
