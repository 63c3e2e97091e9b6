"""MediaPipe's detectors, on a photograph that ultralytics comes with. Without the package only the errors are
tested."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.requests_data import EMBEDDED, INPUTS

from backend.core.errors import InputError
from backend.core.settings import Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.detection.detections import Detections
from modules.detection.mediapipe import INSTALL, NAMES, MediaPipeFaces, why_not
from modules.detection.registry import find_detectors
from modules.detection.service import Detectors
from modules.detection.yolo import offline_ultralytics
from modules.request.parser import build_request

HERE = pytest.mark.skipif(bool(why_not()), reason=f"{why_not()}")
FACE = (916, 120, 1070, 275)
"""Where the nearer face is in the photograph, in pixels."""
REGION = (900, 20, 1130, 380)
"""A part of it with that face alone."""


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    spec = find_spec("ultralytics")
    assert spec is not None and spec.origin
    return Image.open(Path(spec.origin).parent / "assets" / "zidane.jpg").convert("RGB")


@pytest.fixture(scope="module")
def faces() -> MediaPipeFaces:
    return MediaPipeFaces()


def overlap(box: np.ndarray, other: tuple[int, int, int, int]) -> float:
    """Intersection over union."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = float(np.prod(sides.clip(min=0)))
    return shared / float(np.prod(box[2:] - box[:2]) + np.prod(np.subtract(other[2:], other[:2])) - shared)


@HERE
def test_a_face_is_found(faces: MediaPipeFaces, photograph: Image.Image) -> None:
    (found,) = faces.detect([photograph], 0.5, "mediapipe_face_full")
    assert overlap(found.boxes[0], FACE) > 0.85 and found.confidences[0] == pytest.approx(0.822, abs=0.02)
    assert found.masks.shape == (1, 720, 1280) and found.masks[0, 200, 990] == 255


@HERE
def test_several_pictures_and_none_with_a_face(faces: MediaPipeFaces, photograph: Image.Image) -> None:
    blank = Image.new("RGB", (64, 48))
    for name in NAMES:
        near, nothing = faces.detect([photograph.crop(REGION), blank], 0.3, name)
        assert len(near) == 1 and len(nothing) == 0 and nothing.masks.shape == (0, 48, 64)


@HERE
def test_a_box_that_leaves_the_picture_is_cut(faces: MediaPipeFaces, photograph: Image.Image) -> None:
    (found,) = faces.detect([photograph], 0.1, "mediapipe_face_short")
    assert found.boxes[:, 0::2].max() <= 1280 and found.boxes[:, 1::2].max() <= 720 and found.boxes.min() >= 0


@HERE
def test_a_mesh_has_the_shape_of_the_face_and_eyes_lie_in_it(faces: MediaPipeFaces, photograph: Image.Image) -> None:
    region = photograph.crop(REGION)
    box, mesh, eyes = (
        faces.detect([region], 0.3, name)[0]
        for name in ("mediapipe_face_full", "mediapipe_face_mesh", "mediapipe_face_mesh_eyes_only")
    )
    area = {
        name: int(np.count_nonzero(found.masks[0])) for name, found in (("box", box), ("mesh", mesh), ("eyes", eyes))
    }
    assert area["eyes"] < 0.1 * area["mesh"] and 0.4 * area["box"] < area["mesh"] < 1.3 * area["box"]
    assert not (eyes.masks[0] & ~mesh.masks[0]).any()
    assert (
        overlap(mesh.boxes[0], (FACE[0] - REGION[0], FACE[1] - REGION[1], FACE[2] - REGION[0], FACE[3] - REGION[1]))
        > 0.5
    )


@HERE
def test_they_are_names_like_any_other(photograph: Image.Image, tmp_path: Path) -> None:
    offline_ultralytics(tmp_path)
    settings, models = Settings(), ModelCache(torch.device("cpu"))
    detectors = Detectors(find_detectors(settings), settings, models, OomFallback(models.downgrade))
    models.load("face_detector")
    assert next(iter(detectors.class_sets)) == detectors.default == "face_detector", "the default is ours"
    request = build_request(
        {**INPUTS, "adetailer_args": '{"ad_model": "mediapipe_face_mesh"}'}, EMBEDDED, detectors.class_sets
    )
    found: list[Detections] = detectors.detect([photograph.crop(REGION)], 0.3, request.adetailer[0].model)
    assert len(found[0]) == 1


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        build_request({**INPUTS, "adetailer_args": f'{{"ad_model": "{name}"}}'}, EMBEDDED, {})
    return str(caught.value)


@pytest.mark.skipif(find_spec("mediapipe") is not None, reason="mediapipe is installed")
@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_the_error_says_so(name: str) -> None:
    assert f"'{name}' is not here (MediaPipe's detectors need the package mediapipe: {INSTALL})" in refusal(name)


def test_a_package_that_reports_to_its_maker_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mediapipe" / "tasks").mkdir(parents=True)
    (tmp_path / "mediapipe" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "reports its use over the network" in why_not() and INSTALL in refusal(NAMES[0])
