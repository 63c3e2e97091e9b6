"""The product's own set-up and predictions with models of the published sizes, on a card that is not there."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.fake_card_runs import (
    ALONE,
    as_planned,
    every_model_placed,
    predict_on_card,
    start_on_card,
    steps_watched,
)
from support.fake_cuda import WRITTEN_FOR, FakeCard
from support.fake_cuda_driver import NEED_INDEX
from support.slow import sampled
from support.sparse_checkpoints import write_flux, write_klein, write_stable_diffusion, write_z_image

import modules.app.wiring
from backend.core.errors import UserError
from backend.devices.probe import probe_device
from backend.devices.runtime import DeviceRuntime, device_memory
from backend.memory_management import MemoryPlanError, Workload
from backend.planning.costs import Kind
from modules.app.service import Service

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(WRITTEN_FOR),
    reason=f"NOTHING OF THIS FILE WAS TRIED: the fake card is written for torch {WRITTEN_FOR}, this is "
    f"{torch.__version__}; see tests/support/fake_cuda.py",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models of the published sizes, without their bytes."""
    folder = tmp_path_factory.mktemp("models")
    others = {family: write_stable_diffusion(folder / family, family) for family in ("sdxl", "sd15")}
    flow = {"klein": write_klein(folder / "klein"), "z_image": write_z_image(folder / "z_image")}
    gc.freeze()  # what is there now is not searched again after every service
    return {"flux1": write_flux(folder / "flux1"), **flow, **others}


def test_the_folders_take_no_room(models: dict[str, Path]) -> None:
    files = [file.stat() for folder in models.values() for file in folder.glob("*/*.safetensors")]
    assert sum(file.st_size for file in files) > 40e9
    assert sum(512 * file.st_blocks for file in files) < 5e6


@pytest.mark.parametrize("family", ["flux1", "sdxl"])
def test_in_float16_models_are_as_large_as_the_plan_counts(models: dict[str, Path], family: str) -> None:
    """T5 keeps a fifth of its weights in float32, and autoencoders that overflow all of theirs."""
    with FakeCard(80):
        service = start_on_card(models[family], dtype="float16", **ALONE)
    assert_sizes(service)


def assert_sizes(service: Service) -> None:
    found = service.models.stats().model_bytes
    for name in (*service.profile.encoders, service.profile.denoiser, "vae"):
        assert found[name] == pytest.approx(service.spec.components[name].size(), rel=0.001), name


@pytest.mark.parametrize("held", [0, 1_600_000_000])
def test_the_context_of_the_driver_is_counted_once(held: int) -> None:
    """What the probe finds free is already without it."""
    with FakeCard(24, held_bytes=held, context_bytes=500_000_000):
        memory = device_memory(probe_device("cuda", "auto"), None)
    assert memory.held_bytes == pytest.approx(held, abs=50_000_000)


def test_a_device_without_an_index_is_refused_where_torch_refuses_it() -> None:
    """``torch.device("cuda")`` is a card to some functions of torch, and none to others."""
    real = {name: one for name, one in vars(torch.cuda).items() if inspect.isfunction(one)}
    with FakeCard(24):
        faked = {name for name, one in real.items() if getattr(torch.cuda, name) is not one}
        assert torch.cuda.mem_get_info(torch.device("cuda")) == torch.cuda.mem_get_info()
        assert torch.cuda.get_per_process_memory_fraction(torch.device("cuda", 0)) == 1
        with pytest.raises(ValueError, match="with a specified index"):
            torch.cuda.get_per_process_memory_fraction(torch.device("cuda"))
    assert {name for name in faked if "_get_device_index(device)" in inspect.getsource(real[name])} == NEED_INDEX


MATRIX: Sequence[tuple[str, float, Kind, str]] = [
    ("flux1", 24, "block offload", "bfloat16"),
    ("sdxl", 12, "block offload", "bfloat16"),
    ("sd15", 8, "layer offload", "bfloat16"),
    ("klein", 8, "block offload", "float16"),
    ("z_image", 24, "model offload", "float16"),
]
"""Each family once in its published depth; ``test_fake_card_placements.py`` has the other placements, precisions and
requests."""
LONG = "a prompt with many words" * 50
"""Z-Image reads as many tokens as a prompt has, and the plan counts the most."""


@pytest.mark.parametrize(("family", "gib", "kind", "dtype"), MATRIX)
def test_a_prediction_does_what_the_plan_says(
    models: dict[str, Path], family: str, gib: float, kind: Kind, dtype: str
) -> None:
    words = {"prompt": LONG} if family == "z_image" else {}
    with FakeCard(gib) as card, every_model_placed(kind):
        memory = device_memory(probe_device("cuda", "auto"), None)
        service = start_on_card(models[family], dtype=dtype, weight_precision="bf16", **ALONE)
        assert_sizes(service)
        with steps_watched(card, service):
            did = predict_on_card(card, service, num_inference_steps=2, **words)
        side = service.profile.native
        plan = as_planned(service, memory, Workload(side, side, steps=2, cached_prompts=2))
    assert did.flops == pytest.approx(plan.flops, rel=0.005)
    # the plan's estimates leave out small tensors
    assert 0.85 * plan.peak_bytes < did.peak_bytes < 1.01 * plan.ahead_bytes
    assert did.moved == pytest.approx(plan.moved, rel=0.02)
    assert not did.waits_in_steps


def errors_of(gib: float = 24, **card: Any) -> str:
    """What probing such a card says."""
    with FakeCard(gib, **card), pytest.raises(UserError) as caught:
        probe_device("cuda", "auto")
    return str(caught.value)


def test_a_card_that_this_torch_has_no_code_for_is_one_line() -> None:
    told = errors_of(capability=(6, 1))
    assert "\n" not in told and "6.1" in told


def test_an_old_driver_is_one_line() -> None:
    told = errors_of(cuda=(12, 4))
    assert "\n" not in told and "supports CUDA 12.4" in told and "update the driver to 580 or newer" in told


def test_memory_that_others_take_after_the_plan_moves_models_and_not_the_request(models: dict[str, Path]) -> None:
    with FakeCard(8) as card:
        service = start_on_card(models["sd15"], **ALONE)
        card.driver.held_bytes = card.driver.free_bytes() - 300_000_000
        did = predict_on_card(card, service, num_inference_steps=2)
        following = predict_on_card(card, service, num_inference_steps=2, prompt="another one")
    assert sum(service.fallback.retries.values()) > 0 and did.flops > 0
    # what moves now is pinned, though nothing was before
    assert following.moved > 1_000_000_000 and following.pageable < 50_000_000


@contextmanager
def memory_taken_after_the_plan(card: FakeCard, free: int) -> Iterator[None]:
    """Inside, others leave ``free`` bytes once a plan is made."""
    plan_device = modules.app.wiring.plan_device

    def plan(*args: Any) -> DeviceRuntime:
        runtime = plan_device(*args)
        card.driver.held_bytes = card.driver.free_bytes() - free
        return runtime

    with patch.object(modules.app.wiring, "plan_device", plan):
        yield


def test_a_model_that_no_longer_fits_while_it_is_loaded_is_uploaded_when_it_is_used(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The UNet has 1.7 GB."""
    with FakeCard(8) as card, memory_taken_after_the_plan(card, 1_600_000_000):
        service = start_on_card(models["sd15"], dtype="bfloat16", **ALONE)
        assert service.runtime.kinds["unet"] == "resident"
        assert "model offload for unet does not fit as planned" in caplog.text
        card.driver.held_bytes = 0
        did = predict_on_card(card, service, num_inference_steps=2)
    assert did.moved > 1_700_000_000


def test_a_partial_model_that_no_longer_fits_while_it_is_loaded_keeps_fewer_blocks(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with FakeCard(24) as card, every_model_placed("partial"), memory_taken_after_the_plan(card, 9_000_000_000):
        service = start_on_card(models["flux1"], weight_precision="bf16", **ALONE)
        assert "partial with 14 blocks for transformer does not fit as planned" in caplog.text
        card.driver.held_bytes = 0
        did = predict_on_card(card, service, num_inference_steps=2)
    assert did.moved > 2 * 17e9


def test_where_nothing_can_be_pinned_weights_are_uploaded_from_ordinary_memory(
    models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with FakeCard(8) as card, every_model_placed("block offload"):
        card.driver.register_error = 712
        service = start_on_card(models["sd15"], weight_precision="bf16", **ALONE)
        did = predict_on_card(card, service, num_inference_steps=2)
    assert "host memory cannot be pinned (CUDA error 712)" in caplog.text
    assert did.pageable > 0.99 * did.moved > 0


@pytest.mark.parametrize("host_gib", sampled([16, 32], 2))
def test_a_host_of_any_usual_size_has_a_plan_or_one_line(models: dict[str, Path], host_gib: float) -> None:
    with FakeCard(24, host_gib=host_gib):
        try:
            service = start_on_card(models["flux1"], **ALONE)
        except MemoryPlanError as refusal:
            assert "\n" not in str(refusal) and host_gib == 16
        else:
            assert service.runtime.plan.pin_bytes < host_gib * 2**30


def test_where_the_host_pins_less_than_waits_the_denoiser_comes_first(models: dict[str, Path]) -> None:
    """Its blocks are uploaded in every step, those of T5 once a prompt."""
    denoiser = 24 * 10**9  # all of its 23.8 GB, none of the 9.5 GB of T5
    with FakeCard(24) as card, every_model_placed("block offload", pin_bytes=denoiser):
        service = start_on_card(models["flux1"], weight_precision="bf16", **ALONE)
        did = predict_on_card(card, service, num_inference_steps=2)
        del service
        gc.collect()  # it unpins its memory while the card is there
    assert did.moved > 2 * denoiser and did.pageable < 12 * 10**9
