"""A scheduler that cannot place steps is refused when it is read, not in the first request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from support.refusals import refusal

from backend.core.settings import ROOT
from modules.families.scheduler import built_scheduler, scheduler_config

FLUX = ROOT / "weights" / "embedded" / "flux" / "scheduler"
PLACED: dict[str, Any] = {"sigmas": [1.0, 0.5], "mu": 0.5}


def written(folder: Path, **values: object) -> Path:
    given = json.loads((FLUX / "scheduler_config.json").read_text())
    (folder / "scheduler_config.json").write_text(json.dumps({**given, **values}))
    return folder


def test_it_is_the_one_of_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(FLUX, trust_remote_code=False)
    ours = built_scheduler(FlowMatchEulerDiscreteScheduler, scheduler_config(FLUX), **PLACED)
    assert {**ours.config} == {**theirs.config} and ours.timesteps.equal(theirs.timesteps)


@pytest.mark.parametrize(
    "values",
    [
        {"shift": "large"},
        {"num_train_timesteps": None},
        {"time_shift_type": "evil.Evil"},
        {"_class_name": None},
        {"use_karras_sigmas": "yes", "use_exponential_sigmas": "yes"},
        {"use_beta_sigmas": True, "use_karras_sigmas": True},
    ],
)
def test_a_configuration_for_flux_that_means_nothing_is_named(tmp_path: Path, values: dict[str, object]) -> None:
    folder = written(tmp_path, **values)
    assert "/scheduler_config.json" in refusal(
        lambda: built_scheduler(FlowMatchEulerDiscreteScheduler, scheduler_config(folder), **PLACED)
    )


@pytest.mark.parametrize(
    "values",
    [
        {"beta_schedule": "evil"},
        {"beta_start": "x"},
        {"beta_end": None},
        {"trained_betas": 7},
        {"timestep_spacing": "evil"},
        {"use_karras_sigmas": "x"},
    ],
)
def test_a_configuration_for_sdxl_that_means_nothing_is_named(tmp_path: Path, values: dict[str, object]) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"num_train_timesteps": 1000, **values}))
    assert "/scheduler_config.json" in refusal(
        lambda: built_scheduler(EulerDiscreteScheduler, scheduler_config(tmp_path), num_inference_steps=2)
    )
