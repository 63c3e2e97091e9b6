"""The product's own set-up and predictions with models of the published sizes, on a card that is not there."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from support.fake_card_runs import (
    ALONE,
    as_planned,
    every_model_placed,
    faces_at,
    predict_on_card,
    start_on_card,
    steps_watched,
)
from support.fake_cuda import WRITTEN_FOR, FakeCard
from support.sparse_checkpoints import write_flux, write_klein, write_stable_diffusion

from backend.core.errors import UserError
from backend.devices.probe import probe_device
from backend.devices.runtime import device_memory
from backend.memory_management import MemoryPlanError, Workload
from backend.planning.costs import Kind, passing_bytes

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
    return {"flux1": write_flux(folder / "flux1"), "klein": write_klein(folder / "klein"), **others}


def test_the_folders_take_no_room(models: dict[str, Path]) -> None:
    files = [file.stat() for folder in models.values() for file in folder.glob("*/*.safetensors")]
    assert sum(file.st_size for file in files) > 40e9
    assert sum(512 * file.st_blocks for file in files) < 5e6


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


MATRIX: Sequence[tuple[str, float, Kind, str]] = [
    ("flux1", 80, "resident", "bfloat16"),
    ("flux1", 24, "block offload", "bfloat16"),
    ("flux1", 8, "layer offload", "bfloat16"),
    ("sdxl", 24, "resident", "bfloat16"),
    ("sdxl", 12, "block offload", "bfloat16"),
    ("sd15", 8, "layer offload", "bfloat16"),
    ("klein", 24, "resident", "bfloat16"),
    ("klein", 8, "block offload", "float16"),
]
"""Models of the published depth; ``test_fake_card_placements.py`` has more placements and precisions."""


@pytest.mark.parametrize(("family", "gib", "kind", "dtype"), MATRIX)
def test_a_prediction_does_what_the_plan_says(
    models: dict[str, Path], family: str, gib: float, kind: Kind, dtype: str
) -> None:
    with FakeCard(gib) as card, every_model_placed(kind):
        memory = device_memory(probe_device("cuda", "auto"), None)
        service = start_on_card(models[family], dtype=dtype, weight_precision="bf16", **ALONE)
        with steps_watched(card, service):
            did = predict_on_card(card, service, num_inference_steps=2)
        side = service.profile.native
        plan = as_planned(service, memory, Workload(side, side, steps=2, cached_prompts=2))
    assert did.flops == pytest.approx(plan.flops, rel=0.005)
    components, placements = service.spec.components, service.runtime.plan.placements
    # where there is room the next model is uploaded ahead: the denoiser while prompts are read, then the autoencoder
    passing = {name: passing_bytes(placements[name], components[name]) for name in components}
    ahead = passing["vae"] if kind != "resident" else 0
    reading = sum(passing[name] for name in (*service.profile.encoders, service.profile.denoiser))
    reading += service.runtime.plan.step_bytes["text_encoder"]
    # the plan's estimates leave out small tensors
    assert 0.85 * plan.peak_bytes < did.peak_bytes < 1.01 * max(plan.peak_bytes + ahead, reading)
    assert did.moved == pytest.approx(plan.moved, rel=0.02)
    assert not did.waits_in_steps


FACES = ((60, 60, 180, 180), (250, 80, 360, 200), (90, 300, 220, 440))
REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "image": {"image": "picture.png", "prompt_strength": 0.7},
    "mask": {"image": "picture.png", "mask": "mask.png", "prompt_strength": 0.7},
    "hires": {"enable_hr": True, "hr_scale": 1.5},
    "details": {"adetailer": True},
    "two": {"num_outputs": 2},
    "solver": {"sampler": "DPM++ 2M"},
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    Image.new("RGB", (512, 512), "grey").save(tmp_path / "picture.png")
    ImageDraw.Draw(mask := Image.new("L", (512, 512))).rectangle((100, 100, 300, 300), fill=255)
    mask.save(tmp_path / "mask.png")
    return tmp_path


@pytest.mark.parametrize(("family", "gib"), [("sd15", 8), ("flux1", 80)])
def test_no_request_waits_for_the_card_between_two_steps(
    models: dict[str, Path], pictures: Path, family: str, gib: float
) -> None:
    with FakeCard(gib) as card, faces_at(*FACES):
        service = start_on_card(models[family], disabled_extensions=["safety_check"])
        for name, inputs in REQUESTS.items():
            files = {key: pictures / value for key, value in inputs.items() if key in ("image", "mask")}
            with steps_watched(card, service):
                did = predict_on_card(card, service, **{**inputs, **files, "num_inference_steps": 4})
                loops = len(card.steps)
            assert not did.waits_in_steps, name
            assert did.moved == 0, name
            assert loops == {"hires": 2, "details": 2}.get(name, 1), name


def errors_of(gib: float = 24, **card: Any) -> str:
    """What probing such a card says."""
    with FakeCard(gib, **card), pytest.raises(UserError) as caught:
        probe_device("cuda", "auto")
    return str(caught.value)


def test_a_card_that_this_torch_has_no_code_for_is_one_line() -> None:
    told = errors_of(capability=(6, 1))
    assert "\n" not in told and "6.1" in told


def test_memory_that_others_take_after_the_plan_moves_models_and_not_the_request(models: dict[str, Path]) -> None:
    with FakeCard(8) as card:
        service = start_on_card(models["sd15"], **ALONE)
        card.driver.held_bytes = card.driver.free_bytes() - 300_000_000
        did = predict_on_card(card, service, num_inference_steps=2)
    assert sum(service.fallback.retries.values()) > 0
    assert did.flops > 0


@pytest.mark.parametrize("host_gib", [16, 32, 64])
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
