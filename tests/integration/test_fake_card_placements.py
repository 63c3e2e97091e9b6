"""Every family in several placements and precisions, on the smallest card that the plan has for it: predictions do what
the plan says.

The models are as wide as the published ones and have few blocks; ``test_fake_card.py`` has whole ones on cards as they
are sold.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.fake_card_requests import FACES, LORA, requests_for
from support.fake_card_runs import (
    ALONE,
    as_planned,
    differences,
    every_model_placed,
    faces_at,
    predict_on_card,
    smallest_card,
    start_on_card,
    start_with_lora,
    steps_watched,
)
from support.fake_cuda import WRITTEN_FOR, FakeCard
from support.slow import sampled
from support.sparse_checkpoints import write_flux, write_klein, write_stable_diffusion, write_z_image

from backend.devices.probe import probe_device
from backend.devices.runtime import device_memory
from backend.memory_management import ModelSpec, Workload
from backend.planning.costs import Kind, waiting_bytes
from modules.diffusion.block_cache import computed_steps
from modules.extension_optimizer import optional_features

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(WRITTEN_FOR),
    reason=f"NOTHING OF THIS FILE WAS TRIED: the fake card is written for torch {WRITTEN_FOR}, this is "
    f"{torch.__version__}; see tests/support/fake_cuda.py",
)
WITHOUT = ("prompt_upsampler", "upscale", "face_enhance", "safety_check")
"""Extensions that none of these requests asks for."""
GO_FAST_STEPS = 20
FIRST_BLOCK = 1 / 6
"""Share of the work of a transformer with two double and four single blocks, which work alike for a token."""
Case = tuple[str, Kind, str, str, Sequence[str]]
CASES: Sequence[Case] = [
    ("flux1", "resident", "", "bfloat16", ("solver", "lora")),
    ("flux1", "model offload", "", "bfloat16", ("three details", "two")),
    ("flux1", "partial", "", "bfloat16", ("image and mask", "lora")),
    ("flux1", "block offload", "", "bfloat16", ("image and mask", "hires")),
    ("flux1", "layer offload", "", "bfloat16", ("lora",)),
    ("flux1", "resident", "nf4", "bfloat16", ("two", "lora")),
    ("flux1", "block offload", "nf4", "bfloat16", ("lora",)),
    ("sdxl", "resident", "", "float16", ("solver", "two")),
    ("sdxl", "partial", "", "bfloat16", ("image and mask", "lora")),
    ("sdxl", "model offload", "", "float16", ("hires",)),
    ("sd15", "resident", "", "bfloat16", ("image and mask",)),
    ("sd15", "block offload", "", "float16", ("three details", "lora")),
    ("klein", "resident", "", "float16", ("image and mask", "lora")),
    ("klein", "model offload", "", "bfloat16", ("hires",)),
    ("klein", "partial", "", "bfloat16", ("lora",)),
    ("klein", "block offload", "", "bfloat16", ("three details",)),
    ("klein", "layer offload", "", "bfloat16", ("text",)),
    ("z_image", "resident", "fp8", "bfloat16", ("two", "lora")),
    ("z_image", "partial", "fp8_compute", "bfloat16", ("hires",)),
    ("z_image", "model offload", "", "float16", ("text",)),
    ("z_image", "block offload", "", "bfloat16", ("lora",)),
    ("z_image", "layer offload", "", "float16", ("image and mask",)),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    others = {family: write_stable_diffusion(folder / family, family, short=True) for family in ("sdxl", "sd15")}
    flow = {
        "klein": write_klein(folder / "klein", short=True),
        "z_image": write_z_image(folder / "z_image", short=True),
    }
    gc.freeze()  # what is there now is not searched again after every service
    return {"flux1": write_flux(folder / "flux1", short=True), **others, **flow}


def extensions_left_out(names: Sequence[str]) -> list[str]:
    """Those that these requests do without; detectors take longer to build than all other models of a short one."""
    return [*WITHOUT, *([] if "three details" in names else ["adetailer"])]


@pytest.mark.parametrize(
    ("family", "kind", "precision", "dtype", "names"),
    sampled(CASES, 3),
    ids=["-".join(filter(None, case[:4])) for case in CASES],
)
def test_predictions_do_what_the_plan_says(
    models: dict[str, Path], tmp_path: Path, family: str, kind: Kind, precision: str, dtype: str, names: Sequence[str]
) -> None:
    disabled = extensions_left_out(names)
    card = smallest_card(models[family], kind, precision, dtype=dtype, disabled_extensions=disabled)
    with card, every_model_placed(kind, precision), faces_at(*FACES):
        memory = device_memory(probe_device("cuda", "auto"), None)
        service = start_with_lora(models[family], tmp_path / "loras", dtype, disabled)
        placements, components = service.runtime.plan.placements, service.spec.components
        waiting = sum(waiting_bytes(placements[name], component) for name, component in components.items())
        assert card.driver.pinned_peak == pytest.approx(waiting, rel=0.01)
        if kind == "block offload" and precision:
            assert_rounded_on_the_card(card, service.spec, precision)
        requests = requests_for(service.spec, tmp_path)
        for name in names:
            told = differences(card, service, memory, name, requests[name], family, tmp_path / "loras")
            assert not told, name
        del service
        gc.collect()
        assert not card.driver.registered


def assert_rounded_on_the_card(card: FakeCard, spec: ModelSpec, precision: str) -> None:
    """By the set-up: blocks came as they are in the files, and went as they wait."""
    sizes = [(component, sum(component.blocks)) for component in spec.components.values()]
    assert card.bytes_uploaded > 0.9 * sum(component.bytes_of(count) for component, count in sizes)
    waiting = sum(component.blocks_bytes(count, precision) for component, count in sizes)
    assert card.bytes_downloaded == pytest.approx(waiting, rel=0.1)


def test_in_layer_offload_a_denoiser_that_just_ran_computes_on_the_card_again(models: dict[str, Path]) -> None:
    """Its first weight, where diffusers would look for the device, is on the host: the last layer took its place."""
    with FakeCard(8) as card, every_model_placed("layer offload"):
        service = start_on_card(models["sd15"], dtype="bfloat16", weight_precision="bf16", **ALONE)
        with service.models.on_device(service.profile.denoiser):  # so that it is not unloaded in between
            first, second = (predict_on_card(card, service, num_inference_steps=1) for _ in range(2))
    assert 0 < second.flops < first.flops  # the prompt is remembered


def test_a_lora_computes_beside_the_weights_where_it_is_used(models: dict[str, Path], tmp_path: Path) -> None:
    """Rank 4, for queries and values: a fraction of a percent of the work. The prompt is read once."""
    with FakeCard(80) as card, every_model_placed("resident"):
        service = start_with_lora(models["flux1"], tmp_path / "loras", "bfloat16", list(optional_features()))
        flops = [
            predict_on_card(card, service, num_inference_steps=2, **inputs).flops
            for inputs in ({}, {"lora_weights": LORA}, {"lora_weights": LORA, "lora_scale": 0}, {})
        ][1:]
    assert flops[1] < flops[0] < 1.005 * flops[1] and flops[1] == flops[2]


@pytest.mark.parametrize("kind", ["partial", "block offload"])
def test_go_fast_runs_one_block_in_a_step_that_it_skips_and_uploads_no_other(
    models: dict[str, Path], kind: Kind
) -> None:
    shift = 3.158  # of FLUX.1-dev at 1024 x 1024
    times = [1 - step / GO_FAST_STEPS for step in range(GO_FAST_STEPS)]
    computed = sum(computed_steps([shift * time / (1 + (shift - 1) * time) for time in times]))
    with FakeCard(80) as card, every_model_placed(kind):
        memory = device_memory(probe_device("cuda", "auto"), None)
        service = start_on_card(models["flux1"], dtype="bfloat16", weight_precision="bf16", **ALONE)
        with steps_watched(card, service):
            did = predict_on_card(card, service, num_inference_steps=GO_FAST_STEPS, go_fast=True)
        whole, one_more = (
            as_planned(service, memory, Workload(1024, 1024, steps=steps, cached_prompts=2))
            for steps in (computed, computed + 1)
        )
    assert 0 < computed < GO_FAST_STEPS - 3
    first_block = FIRST_BLOCK * (one_more.flops - whole.flops)
    assert did.flops == pytest.approx(whole.flops + (GO_FAST_STEPS - computed) * first_block, rel=0.01)
    assert did.moved == pytest.approx(whole.moved, rel=0.02)
    assert not did.waits_in_steps
