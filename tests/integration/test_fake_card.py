"""The product's own set-up and predictions with models of the published sizes, on a card that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.fake_card_runs import ALONE, every_model_placed, predict_on_card, start_on_card
from support.fake_cuda import WRITTEN_FOR, FakeCard
from support.sparse_checkpoints import write_flux, write_stable_diffusion

from backend.devices.probe import probe_device
from backend.devices.runtime import device_memory

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
    return {"flux1": write_flux(folder / "flux1"), **others}


def test_the_folders_take_no_room(models: dict[str, Path]) -> None:
    files = [file.stat() for folder in models.values() for file in folder.glob("*/*.safetensors")]
    assert sum(file.st_size for file in files) > 40e9
    assert sum(512 * file.st_blocks for file in files) < 5e6


@pytest.mark.parametrize(("family", "gib"), [("flux1", 80), ("sdxl", 24)])
def test_resident_models_compute_what_the_plan_counts(models: dict[str, Path], family: str, gib: int) -> None:
    with FakeCard(gib) as card:
        service = start_on_card(models[family], **ALONE)
        spec = service.spec
        did = predict_on_card(card, service)
    assert set(service.runtime.kinds.values()) == {"resident"}
    assert did.moved == 0
    side = service.profile.native
    tokens = spec.text_tokens + (side // spec.token_pixels) ** 2
    costs = {name: spec.costs[name].work for name in ("encode", "denoise", "decode")}
    planned = costs["encode"](spec.text_tokens) + 6 * costs["denoise"](tokens) + costs["decode"](side * side)
    assert did.flops == pytest.approx(planned, rel=0.005)


@pytest.mark.parametrize("family", ["flux1", "sdxl", "sd15"])
def test_layer_offload_computes_on_the_card(models: dict[str, Path], family: str) -> None:
    """Where the parameters wait on the host, the pipeline must not take its device from them."""
    with FakeCard(80) as card, every_model_placed("layer offload", pin_bytes=0):
        service = start_on_card(models[family], **ALONE)
        did = predict_on_card(card, service, num_inference_steps=2)
    denoiser = service.spec.components[service.spec.denoiser]
    assert did.moved > 2 * denoiser.size()
    assert did.peak_bytes < 0.6 * denoiser.size()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["flux1", "sdxl", "sd15"])
def test_models_are_as_large_as_the_plan_counts(models: dict[str, Path], family: str, dtype: str) -> None:
    """In float16 T5 keeps a fifth of its weights in float32, and autoencoders that overflow all of theirs."""
    with FakeCard(80):
        service = start_on_card(models[family], dtype=dtype, **ALONE)
    found = service.models.stats().model_bytes
    for name in (*service.profile.encoders, service.profile.denoiser, "vae"):
        assert found[name] == pytest.approx(service.spec.components[name].size(), rel=0.001), name


@pytest.mark.parametrize("held", [0, 1_600_000_000])
def test_the_context_of_the_driver_is_counted_once(held: int) -> None:
    """What the probe finds free is already without it."""
    with FakeCard(24, held_bytes=held, context_bytes=500_000_000):
        memory = device_memory(probe_device("cuda", "auto"), None)
    assert memory.held_bytes == pytest.approx(held, abs=50_000_000)
