"""The embedded family in every placement of the memory plan, on the emulated device: the same bits, less memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROMPT

from backend.computer import Computer, plan_device
from backend.cost_model import KINDS, Kind, Placement
from backend.devices import Device
from backend.emulated_device import EmulatedDevice
from backend.memory_management import MemoryPlanError, predicted_peak
from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder
from backend.plan_report import emulated_memory
from backend.settings import Settings
from modules.adetailer.arguments import AdetailerUnit
from modules.assembly import assemble
from modules.flux_memory_optimizer import FluxMemoryOptimizer
from modules.model_files import find_files
from modules.request import ImageRequest
from modules.startup import Service

STREAMED = ("text_encoder_2", "transformer")
"""The models that have blocks; the others can only be resident or swapped."""
REQUEST = ImageRequest(prompt=PROMPT, width=256, height=256, seed=3, num_inference_steps=2, scale=2, adetailer=(AdetailerUnit(),))
DEVICE = Device("cpu", "emulated", 0, 0, None, torch.float32)


@dataclass(frozen=True)
class Run:
    """One run of the request: its picture, what the device saw, and the peak that the plan foretold for these placements."""

    picture: np.ndarray
    device: EmulatedDevice
    models: ModelCache
    ladder: Ladder
    dtype: str
    predicted_peak: int


def run(placements: Mapping[str, Placement] | None, budget: int, folder: Path, model: str = "embedded", request: ImageRequest = REQUEST) -> Run:
    """The request with the models placed so, or as the plan for a device of ``budget`` bytes wants it."""
    settings = replace(Settings(), model=model)
    files = find_files(settings)
    workload = replace(files.workload(settings), scale=request.scale, steps=request.num_inference_steps)
    computer = plan_device(DEVICE, files.sizes(), workload, budget)
    device, placements = computer.transfers, placements or computer.plan.placements
    assert isinstance(device, EmulatedDevice)
    predicted = predicted_peak(emulated_memory(budget, 10**10), files.sizes(), replace(workload, upscale_tile=computer.plan.upscale_tile), placements)
    plan = replace(computer.plan, placements=placements)
    optimizer = FluxMemoryOptimizer(DEVICE, plan, settings)
    kinds = files.kinds({name: placement.kind for name, placement in placements.items()})
    models = ModelCache(torch.device("cpu"), device, kinds, prepare=optimizer.improve)
    ladder = Ladder(models.make_leaner)
    pipeline = assemble(files, settings, DEVICE, plan, models, ladder, folder).pipeline
    for name in models.names():
        models.load(name)
    with device:
        picture = np.asarray(pipeline.run(request).pictures[0].image)
    models.release()
    return Run(picture, device, models, ladder, placements[files.family.denoiser].dtype, predicted)


def placed(kind: Kind, folder: Path, budget: int = 10**9, dtype: str = "fp32") -> Run:
    """Every model placed as ``kind`` says, as far as it can be; those that have blocks in ``dtype``."""
    lighter: Kind = "swapped" if kind != "resident" else "resident"
    components = find_files(replace(Settings(), model="embedded")).sizes().components
    placements = {name: Placement(kind, dtype) if name in STREAMED else Placement(lighter, "fp32") for name in components}
    return run(placements, budget, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Run]:
    return {kind: placed(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def test_every_placement_gives_the_same_bits(service: Service, runs: dict[Kind, Run]) -> None:
    for kind, run in runs.items():
        assert np.array_equal(run.picture, runs["resident"].picture), kind
    plain = np.asarray(service.pipeline.run(REQUEST).pictures[0].image)
    # the plan for a card may take other tiles than the plan for the host, which round differently
    assert np.abs(runs["resident"].picture.astype(int) - plain).max() <= 1


@pytest.fixture(scope="module", params=["fp8", "nf4"])
def rounded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[Kind, Run]:
    kinds: tuple[Kind, ...] = ("resident", "swapped", "grouped")
    return {kind: placed(kind, tmp_path_factory.mktemp(f"{request.param}-{kind}"), dtype=request.param) for kind in kinds}


def test_rounded_every_placement_gives_nearly_the_same_picture(runs: dict[Kind, Run], rounded: dict[Kind, Run]) -> None:
    exact = runs["resident"].picture.astype(int)
    for kind, run in rounded.items():
        assert np.array_equal(run.picture, rounded["resident"].picture), kind
    error = float(np.square(exact - rounded["resident"].picture).mean())
    psnr = 10 * np.log10(255**2 / error)
    print(f"{rounded['resident'].dtype}: {psnr:.1f} dB")  # the figures of docs/memory.md
    assert error > 0 and psnr > (27 if rounded["resident"].dtype == "fp8" else 18)


def test_rounded_the_models_are_as_small_as_the_plan_counts(runs: dict[Kind, Run], rounded: dict[Kind, Run]) -> None:
    sizes = find_files(replace(Settings(), model="embedded")).sizes()
    exact, narrow = (some["resident"].models.stats().model_bytes for some in (runs, rounded))
    for name in STREAMED:
        component = sizes.components[name]
        assert exact[name] - narrow[name] == pytest.approx(component.size() - component.size(rounded["resident"].dtype), rel=0.05), name
    for kind, run in rounded.items():
        assert run.predicted_peak == pytest.approx(run.device.peak_bytes, rel=0.1), kind


def test_the_peak_is_foretold_within_a_tenth(runs: dict[Kind, Run]) -> None:
    for kind, run in runs.items():
        assert run.predicted_peak == pytest.approx(run.device.peak_bytes, rel=0.1), kind


def test_on_a_small_card_the_plan_is_kept(service: Service, tmp_path: Path) -> None:
    budget = 48_000_000
    plain = np.asarray(service.pipeline.run(REQUEST).pictures[0].image)
    small = run(None, budget, tmp_path)
    assert small.device.peak_bytes <= budget
    assert small.predicted_peak == pytest.approx(small.device.peak_bytes, rel=0.1)
    # smaller tiles round differently, no more than that
    assert np.abs(small.picture.astype(int) - plain).max() <= 1


def test_where_the_plan_was_wrong_the_models_are_placed_leaner(service: Service, tmp_path: Path) -> None:
    plain = np.asarray(service.pipeline.run(REQUEST).pictures[0].image)
    whole = sum(service.models.stats().model_bytes.values())
    tight = placed("resident", tmp_path, whole + 2_000_000)
    assert tight.ladder.retries
    assert tight.device.peak_bytes <= whole + 2_000_000
    assert tight.models.stats().evictions > 0
    assert np.abs(tight.picture.astype(int) - plain).max() <= 1


def test_a_leaner_placement_has_a_lower_peak(runs: dict[Kind, Run]) -> None:
    peaks = [runs[kind].device.peak_bytes for kind in ("resident", "swapped", "grouped", "sequential")]
    assert peaks == sorted(peaks, reverse=True) and peaks[1] < 0.8 * peaks[0]


def test_resident_models_move_once_and_the_others_leave_nothing(runs: dict[Kind, Run]) -> None:
    for kind, run in runs.items():
        device, models = run.device, run.models
        whole = sum(models.stats().model_bytes.values())
        if kind == "resident":
            assert device.bytes_uploaded == whole and device.allocated_bytes >= whole
        else:
            # what a prediction remembers, such as the prompt's embeddings, is small
            assert device.allocated_bytes < 2_000_000, kind


def test_a_card_that_is_too_small_is_refused_before_anything_is_read() -> None:
    settings = replace(Settings(), model="embedded")
    files = find_files(settings)
    with pytest.raises(MemoryPlanError, match="are missing"):
        plan_device(DEVICE, files.sizes(), files.workload(settings), 5_000_000)


def test_without_a_card_of_its_own_everything_stays() -> None:
    settings = replace(Settings(), model="embedded")
    files = find_files(settings)
    computer: Computer = plan_device(DEVICE, files.sizes(), files.workload(settings))
    assert set(computer.kinds.values()) == {"resident"}
