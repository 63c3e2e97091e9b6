"""What is installed is known before a model is loaded: the checks of a table are those of the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.core.settings import Settings
from modules.app.installed_files import checks_before_loading
from modules.app.service import Service
from modules.detection.registry import stated_classes
from modules.request.defaults import DEFAULTS


def test_they_are_those_of_the_service_with_its_models_loaded(service: Service) -> None:
    assert checks_before_loading(Settings(model="embedded")).installed == service.checks.installed


def test_the_profile_gives_the_defaults() -> None:
    assert checks_before_loading(Settings(model="embedded", profile="hosted")).installed.defaults == DEFAULTS["hosted"]


def test_what_is_turned_off_is_not_installed() -> None:
    checks = checks_before_loading(Settings(model="embedded", disabled_extensions=("adetailer", "face_enhance")))
    assert checks.installed.detectors == {} and "adetailer" in checks.installed.disabled


@pytest.mark.parametrize(
    ("name", "words", "accepted"),
    [
        ("hand_yolov8n.pt", "hand", True),
        ("hand_yolov8n.pt", "face", False),
        ("yolov8x-worldv2.pt", "a fox", True),
        ("somebodys.onnx", "anything", True),
    ],
)
def test_a_name_stands_for_classes_and_others_are_left_to_the_weights(name: str, words: str, accepted: bool) -> None:
    assert (stated_classes(Path(name)).problem(words) == "") == accepted
