"""Families in placements and precisions, on the smallest card that the plan has for it: predictions do what
the plan says.

The models are as wide as the published ones and have few blocks; ``test_fake_card.py`` has whole ones on cards as they
are sold.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.fake_card_requests import FACES, STEPS, requests_for
from support.fake_card_runs import (
    Planned,
    Prediction,
    as_planned,
    every_model_placed,
    faces_at,
    predict_on_card,
    smallest_card,
    start_on_card,
    steps_watched,
)
from support.fake_cuda import WRITTEN_FOR, FakeCard
from support.sparse_checkpoints import write_flux, write_stable_diffusion

from backend.devices.probe import probe_device
from backend.devices.runtime import device_memory
from backend.planning.costs import KINDS, Kind, passing_bytes, standing_bytes, waiting_bytes

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(WRITTEN_FOR),
    reason=f"NOTHING OF THIS FILE WAS TRIED: the fake card is written for torch {WRITTEN_FOR}, this is "
    f"{torch.__version__}; see tests/support/fake_cuda.py",
)
WITHOUT = ("prompt_upsampler", "upscale", "face_enhance", "safety_check")
"""Extensions that none of these requests asks for."""
CASES: Sequence[tuple[str, Kind, str, str]] = [
    # T5 has its embedding in two layers, so layer by layer it is pinned twice: test_fake_card.py has that placement
    *(("flux1", kind, "", "bfloat16") for kind in KINDS if kind != "layer offload"),
    ("flux1", "block offload", "", "float16"),
    ("flux1", "resident", "nf4", "bfloat16"),
    ("flux1", "model offload", "fp8", "bfloat16"),
    ("flux1", "partial", "fp8_compute", "bfloat16"),
    ("flux1", "block offload", "nf4", "bfloat16"),
    ("sdxl", "partial", "", "bfloat16"),
    ("sdxl", "model offload", "", "float16"),
    ("sd15", "block offload", "", "float16"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("models")
    others = {family: write_stable_diffusion(folder / family, family, short=True) for family in ("sdxl", "sd15")}
    gc.freeze()  # what is there now is not searched again after every service
    yield {"flux1": write_flux(folder / "flux1", short=True), **others}
    gc.unfreeze()


def run_requests(
    card: FakeCard, model: Path, folder: Path, kind: Kind, dtype: str
) -> Iterator[tuple[str, Prediction, Planned]]:
    """For every request what it did, and what the plan says of it."""
    memory = device_memory(probe_device("cuda", "auto"), None)
    service = start_on_card(model, dtype=dtype, disabled_extensions=WITHOUT, weight_precision="bf16")
    made, components = service.runtime.plan, service.spec.components
    waiting = sum(waiting_bytes(made.placements[name], component) for name, component in components.items())
    assert card.driver.pinned_peak == pytest.approx(waiting, rel=0.01)
    passing = {name: passing_bytes(made.placements[name], component) for name, component in components.items()}
    standing = sum(standing_bytes(made.placements[name], component) for name, component in components.items())
    reading = standing + sum(passing[name] for name in (*service.profile.encoders, service.profile.denoiser))
    for name, request in requests_for(service.spec, folder).items():
        with steps_watched(card, service):
            did = predict_on_card(card, service, prompt=name, num_inference_steps=STEPS, **request.inputs)
        plan = as_planned(service, memory, request.workload, request.steps)
        # where there is room the next model is uploaded ahead: the denoiser while prompts are read, then the autoencoder
        peak = plan.peak_bytes
        if kind != "resident":
            peak = max(peak + passing["vae"], reading + made.step_bytes["text_encoder"])
        yield name, did, replace(plan, peak_bytes=peak)
        assert did.peak_bytes > 0.85 * plan.peak_bytes, name
        assert not sum(service.fallback.retries.values()), name


@pytest.mark.parametrize(("family", "kind", "precision", "dtype"), CASES)
def test_predictions_do_what_the_plan_says(
    models: dict[str, Path], tmp_path: Path, family: str, kind: Kind, precision: str, dtype: str
) -> None:
    settings = {"dtype": dtype, "disabled_extensions": WITHOUT}
    card = smallest_card(models[family], kind, precision, **settings)
    with card, every_model_placed(kind, precision), faces_at(*FACES):
        for name, did, plan in run_requests(card, models[family], tmp_path, kind, dtype):
            # of a larger picture the plan takes the autoencoder's attention as linear
            assert did.flops == pytest.approx(plan.flops, rel=0.01 if name == "hires" else 0.005), name
            assert did.peak_bytes < 1.01 * plan.peak_bytes, name
            assert did.moved == pytest.approx(plan.moved, rel=0.02), name
            assert did.pageable < 50_000_000, name  # pictures and noise, no weights
            assert not did.waits_in_steps, name
        gc.collect()
        assert not card.driver.registered
