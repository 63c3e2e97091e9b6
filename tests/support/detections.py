"""Detections that must be equal, and those of the predictor of ultralytics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from backend.core.settings import ROOT
from modules.detection.detections import Detections, rectangle_masks

WEIGHTS = ROOT / "weights" / "embedded" / "face_detector.safetensors"


def assert_equal(ours: Detections, theirs: Detections, tolerance: float = 0.0) -> None:
    assert len(ours) == len(theirs)
    assert np.abs(ours.boxes - theirs.boxes).max(initial=0) <= tolerance
    assert np.abs(ours.confidences - theirs.confidences).max(initial=0) <= tolerance
    assert np.count_nonzero(ours.masks != theirs.masks) <= (1e-3 * ours.masks.size if tolerance else 0)


def predicted(
    network: torch.nn.Module, image: Image.Image, imgsz: int, confidence: float, monkeypatch: pytest.MonkeyPatch
) -> Detections:
    from ultralytics.models.yolo.detect import DetectionPredictor
    from ultralytics.models.yolo.segment import SegmentationPredictor

    segments = type(network).__name__ == "SegmentationModel"
    predictor = (SegmentationPredictor if segments else DetectionPredictor)(
        overrides={
            "conf": confidence,
            "imgsz": imgsz,
            "retina_masks": True,
            "rect": True,
            "device": "cpu",
            "save": False,
            "verbose": False,
        }
    )
    monkeypatch.setattr(
        "torchvision.extension._has_ops", lambda: True
    )  # else it refuses operators that are defined in Python
    (result,) = predictor(image, network)
    boxes = result.boxes.xyxy.numpy().astype(np.float64)
    if not segments or result.masks is None:
        return Detections(boxes, rectangle_masks(boxes, image.size), result.boxes.conf.numpy().astype(np.float64))
    return Detections(
        boxes, result.masks.data.numpy().astype(np.uint8) * np.uint8(255), result.boxes.conf.numpy().astype(np.float64)
    )
