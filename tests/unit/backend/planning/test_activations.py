"""The steps of a prediction, in order, with what each computes."""

from __future__ import annotations

import pytest
from support.model_specs import FLUX_DEV

from backend.planning.activations import Workload, prediction_steps


def test_flops_of_a_step_are_the_measured_ones() -> None:
    for side, teraflops in ((1024, 74.38), (2048, 418)):
        step = next(step for step in prediction_steps(Workload(side, side), FLUX_DEV) if step.stage == "denoise")
        assert step.work / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_the_steps_of_a_prediction() -> None:
    wanted = Workload(1024, 1024, outputs=2, hires=(1536, 1536), detail_crop=1024, details=2, scale=8)
    repaint = ["vae", "transformer", "vae"]
    expected = [
        "text_encoder_2",
        "transformer",
        "vae",
        "upscaler",
        *repaint,
        "detectors",
        *repaint,
        *repaint,
        "upscaler",
        "upscaler",
    ]
    assert [step.components[-1] for step in prediction_steps(wanted, FLUX_DEV)] == expected
    assert [step.components[-1] for step in prediction_steps(Workload(512, 512), FLUX_DEV, new_prompt=False)] == [
        "transformer",
        "vae",
    ]
