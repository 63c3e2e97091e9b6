"""A family is added by its descriptor alone: a toy of under 80 lines goes through the set-up, the memory plan, the model
cache and the stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.toy_family import MODULES, Toy

from backend.core.errors import InputError, WeightsError
from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start
from modules.families.registry import FAMILIES
from modules.families.source import INDEX

INPUTS = {"prompt": "abc", "adetailer": False, "scale": 1.0, "seed": 5, "output_format": "png"}


def write_toy(folder: Path) -> Path:
    """A model of the family, with random weights."""
    torch.manual_seed(0)
    for name, make in MODULES.items():
        (folder / name).mkdir(parents=True)
        save_file(make().state_dict(), folder / name / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"_class_name": "ToyPipeline"}))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = write_toy(tmp_path_factory.mktemp("models") / "toy")
    return replace(Settings(), model=str(folder), dtype="float32", log_level="WARNING", warm_up=False)


@pytest.fixture(scope="module")
def service(settings: Settings) -> Service:
    return start(settings, families=(*FAMILIES, Toy()))


def generated(service: Service, **inputs: Any) -> Image.Image:
    (file,) = service.predict({**INPUTS, **inputs}, lambda name, value: None, progress=lambda *step: None)
    with Image.open(file) as image:
        return image.convert("RGB")


def test_the_toy_is_short() -> None:
    assert len((ROOT / "tests" / "support" / "toy_family.py").read_text().splitlines()) < 80


def test_it_generates_a_picture_of_its_own_size_by_seed_and_prompt(service: Service) -> None:
    first = generated(service)
    assert first.size == (64, 64) and np.ptp(np.asarray(first)) > 0
    assert np.array_equal(np.asarray(generated(service)), np.asarray(first))
    for change in ({"seed": 6}, {"prompt": "xyz"}, {"num_inference_steps": 7}):
        assert not np.array_equal(np.asarray(generated(service, **change)), np.asarray(first)), change


def test_the_other_stages_take_its_pictures(service: Service) -> None:
    sure = json.dumps({"ad_confidence": 1.0})  # it looks for faces and repaints none, which the toy could not
    assert generated(service, scale=2.0, adetailer=True, adetailer_args=sure).size == (128, 128)


def test_its_models_are_planned_and_placed(service: Service) -> None:
    assert {"text_encoder", "denoiser", "vae"} <= set(service.runtime.plan.placements)
    assert service.models.stats().model_bytes["denoiser"] == 4 * (4 * 4 * 9 + 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"negative_prompt": "blurry"}, "negative_prompt: Toy has none"),
        ({"go_fast": True}, "go_fast: is not for Toy"),
        ({"sampler": "UniPC"}, "sampler: must be one of Euler, not 'UniPC'"),
    ],
)
def test_it_says_which_inputs_it_does_not_honour(service: Service, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        generated(service, **inputs)


def test_without_its_descriptor_the_model_is_not_known(settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"^toy is a ToyPipeline; 'model' takes .* flux1, .*sd15$"):
        start(settings)
