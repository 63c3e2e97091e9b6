"""NudeNet's faces, on the photographs that ultralytics comes with."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.photographs import photograph
from support.requests_data import EMBEDDED, INPUTS

from backend.core.errors import InputError
from backend.core.settings import Settings
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.detection import nudenet
from modules.detection.nudenet import NAMES, NudeNetFaces, unavailable_reason
from modules.detection.registry import find_detectors
from modules.detection.service import DetectionService
from modules.detection.yolo import offline_ultralytics
from modules.request.parser import build_request

HERE = pytest.mark.skipif(bool(unavailable_reason()), reason=unavailable_reason())
TWO_MEN, FACES = (0, 330, 480, 650), ((108, 93, 158, 142), (265, 101, 310, 146))
"""A part of "bus.jpg" with two men who look ahead, and where in it their faces are."""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@HERE
def test_every_face_is_found_once_and_nothing_else() -> None:
    men = photograph("bus.jpg").crop(TWO_MEN)
    both, nothing = NudeNetFaces().detect([men, men.crop((330, 0, 480, 320))], 0.3, NAMES[0])
    found = sorted(tuple(map(float, box)) for box in both.boxes)
    assert len(found) == 2 and len(nothing) == 0
    for box, face in zip(found, FACES, strict=True):
        assert box == pytest.approx(face, abs=8)


@HERE
def test_it_is_a_name_like_any_other() -> None:
    settings, models = Settings(), ModelCache(torch.device("cpu"))
    detectors = DetectionService(find_detectors(settings), settings, models, OomFallback(models))
    request = build_request(
        {**INPUTS, "adetailer_args": '{"ad_model": "nudenet_face"}'}, EMBEDDED, detectors.class_sets
    )
    [found] = detectors.detect([photograph("bus.jpg").crop(TWO_MEN)], 0.3, request.adetailer[0].model)
    assert len(found) == 2 and detectors.default == "face_detector"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nudenet, "find_spec", lambda name: None if name == "nudenet" else find_spec(name))
    with pytest.raises(InputError, match=r"'nudenet_face' is not installed \(NudeNet's detector .*requirements-safety"):
        build_request({**INPUTS, "adetailer_args": '{"ad_model": "nudenet_face"}'}, EMBEDDED, {})
    assert Path("requirements-safety.txt").is_file()
