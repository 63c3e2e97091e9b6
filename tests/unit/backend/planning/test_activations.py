"""The steps of a prediction, in order, with what each computes."""

from __future__ import annotations

from dataclasses import replace

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


def test_a_picture_that_is_finished_is_not_drawn_and_is_upscaled_at_its_own_size() -> None:
    wanted = Workload(1024, 1024, detail_crop=1024, scale=2, finished=(7740, 5160))
    steps = prediction_steps(wanted, FLUX_DEV, new_prompt=False)
    assert [step.components[-1] for step in steps] == ["detectors", "vae", "transformer", "vae", "upscaler"]
    drawn = prediction_steps(replace(wanted, finished=None), FLUX_DEV, new_prompt=False)
    row = 3 * 4 * 7740 * 1024 * FLUX_DEV.upscale_factor**2
    assert steps[-1].memory > drawn[-1].memory + 0.8 * row and steps[0].memory - drawn[2].memory == 6 * 2**22
    assert steps[1:4] == drawn[3:6], "a detail is drawn at the model's own size"


def test_pictures_that_are_finished_take_host_memory() -> None:
    wanted = Workload(1024, 1024, outputs=2, finished=(7740, 5160))
    assert wanted.picture_bytes == 2 * 20 * 7740 * 5160
    assert replace(wanted, scale=1.5).picture_bytes == 2 * (20 * 7740 * 5160 + 40 * 11610 * 7740)
    assert replace(wanted, finished=None).picture_bytes == 0
