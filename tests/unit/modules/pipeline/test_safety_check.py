"""The stage ``safety_check``: pictures that NudeNet objects to are left out, with its real weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.photographs import one_man
from support.predictions import predicted

from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.app.model_files import find_files
from modules.app.service import Service, start
from modules.detection.yolo import offline_ultralytics
from modules.output.image_writer import read_parameters
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.pipeline.safety_check import NoSafePicture, SafetyCheckStage
from modules.request.image_request import ImageRequest
from modules.safety.discovery import SAFETY_CHECKER, find_safety_checker
from modules.safety.networks import load_safety_checker
from modules.safety.service import SafetyService

REQUEST = ImageRequest(prompt="people", width=64, height=64, seed=1)
SAFE = Image.new("RGB", (320, 320), "white")
"""Shows nobody."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> SafetyCheckStage:
    """Objects to faces of men."""
    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))
    source = find_safety_checker(replace(Settings(), safety_checker="nudenet"), needed=True)
    assert source is not None
    models = ModelCache(torch.device("cpu"))
    models.register(SAFETY_CHECKER, lambda: load_safety_checker(source, ("FACE_MALE",)))
    return SafetyCheckStage(SafetyService(models, OomFallback(models), source.label, 0.5))


def batch(*images: Image.Image) -> ImageBatch:
    return ImageBatch(tuple(Picture(image, 5 + i) for i, image in enumerate(images)), Timeline(), no_progress)


def test_one_of_four_is_left_out_and_told_by_number_class_and_score(stage: SafetyCheckStage) -> None:
    result = stage.run(batch(SAFE, SAFE, one_man(), SAFE), REQUEST)
    assert [picture.seed for picture in result.pictures] == [5, 6, 8]
    (notice,) = result.notices
    assert notice.startswith("picture 3 (seed 7) is left out: nudenet sees FACE_MALE 0.")
    assert result.metrics == {"safety_check.left_out": 1}


def test_pictures_that_pass_keep_their_pixels(stage: SafetyCheckStage) -> None:
    (picture,) = stage.run(batch(SAFE), REQUEST).pictures
    assert picture.image is SAFE and picture.parameters == {"Safety checker": "nudenet"}


def test_a_request_without_a_picture_that_passes_fails_with_the_sentence_that_callers_know(
    stage: SafetyCheckStage,
) -> None:
    with pytest.raises(NoSafePicture, match=r"^All generated images contained NSFW content\. Try running it again"):
        stage.run(batch(one_man(), one_man()), REQUEST)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Objects to every portrait that the embedded model draws."""
    settings = Settings(
        model="embedded",
        safety_checker="embedded/face_detector.safetensors",
        safety_classes=("face",),
        safety_threshold=0.05,
        warm_up=False,
    )
    yield start(settings)


PORTRAIT = {"seed": 1, "scale": 1.0, "adetailer": False, "num_inference_steps": 4}


def test_the_check_runs_last_on_finished_pictures(service: Service) -> None:
    assert service.pipeline.stages[-1].name == "safety_check"
    with pytest.raises(NoSafePicture):
        predicted(service, **PORTRAIT)


def test_the_input_turns_it_off(service: Service) -> None:
    _, metrics, files = predicted(service, **PORTRAIT, disable_safety_checker=True)
    assert len(files) == 1 and "safety_check.left_out" not in metrics
    assert "Safety checker" not in read_parameters(files[0])[0]


def test_the_plan_counts_it(service: Service) -> None:
    assert service.spec.components[SAFETY_CHECKER].parameters > 100_000
    assert "safety_check" in service.extensions.enabled


def test_the_embedded_model_has_none_by_default() -> None:
    assert find_files(replace(Settings(), model="embedded")).safety_checker is None
