"""The embedded family in every placement of the memory plan, on the emulated device: the same bits, less memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import DEVICE, REQUEST, STREAMED, Run, placed, run_emulated

from backend.core.settings import Settings
from backend.devices import runtime as runtime_module
from backend.devices.emulated import EmulatedDevice
from backend.devices.runtime import DeviceRuntime, plan_device
from backend.memory_management import MemoryPlanError
from backend.planning.costs import KINDS, Kind
from modules.app.model_files import find_files
from modules.app.service import Service


@pytest.fixture(scope="module")
def plain(service: Service) -> np.ndarray:
    """The picture without a device of its own."""
    return np.asarray(service.pipeline.run(REQUEST).pictures[0].image)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Run]:
    return {kind: placed(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def test_every_placement_gives_the_same_bits(plain: np.ndarray, runs: dict[Kind, Run]) -> None:
    for kind, run in runs.items():
        assert np.array_equal(run.picture, runs["resident"].picture), kind
    # the plan for a card may take other tiles than the plan for the host, which round differently
    assert np.abs(runs["resident"].picture.astype(int) - plain).max() <= 1


ROUNDED: Mapping[str, Kind] = {"fp8_compute": "partial", "nf4": "block offload"}
"""For 8 and 4 bits a placement that moves weights. ``test_quantized_linear.py`` has all pairs."""


@pytest.fixture(scope="module", params=ROUNDED)
def rounded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[Kind, Run]:
    kinds: tuple[Kind, ...] = ("resident", ROUNDED[request.param])
    return {
        kind: placed(kind, tmp_path_factory.mktemp(f"{request.param}-{kind}"), dtype=request.param) for kind in kinds
    }


def test_rounded_every_placement_gives_nearly_the_same_picture(runs: dict[Kind, Run], rounded: dict[Kind, Run]) -> None:
    exact = runs["resident"].picture.astype(int)
    for kind, run in rounded.items():
        assert np.array_equal(run.picture, rounded["resident"].picture), kind
    error = float(np.square(exact - rounded["resident"].picture).mean())
    psnr = 10 * np.log10(255**2 / error)
    assert error > 0 and psnr > (18 if rounded["resident"].dtype == "nf4" else 27)


def test_rounded_the_models_are_as_small_as_the_plan_counts(runs: dict[Kind, Run], rounded: dict[Kind, Run]) -> None:
    sizes = find_files(replace(Settings(), model="embedded")).spec()
    exact, narrow = (some["resident"].models.stats().model_bytes for some in (runs, rounded))
    for name in STREAMED:
        component = sizes.components[name]
        assert exact[name] - narrow[name] == pytest.approx(
            component.size() - component.size(rounded["resident"].dtype), rel=0.05
        ), name
    for kind, run in rounded.items():
        assert run.predicted_peak == pytest.approx(run.device.peak_bytes, rel=0.1), kind


def test_the_peak_is_predicted_within_a_tenth(runs: dict[Kind, Run]) -> None:
    for kind, run in runs.items():
        assert run.predicted_peak == pytest.approx(run.device.peak_bytes, rel=0.1), kind


def test_on_a_small_card_the_plan_is_kept(plain: np.ndarray, tmp_path: Path) -> None:
    budget = 55_000_000
    small = run_emulated(None, budget, tmp_path)
    assert small.device.peak_bytes <= budget
    assert small.predicted_peak == pytest.approx(small.device.peak_bytes, rel=0.1)
    # smaller tiles round differently, no more than that
    assert np.abs(small.picture.astype(int) - plain).max() <= 1


def test_where_the_plan_was_wrong_models_leave_the_device(service: Service, plain: np.ndarray, tmp_path: Path) -> None:
    whole = sum(service.models.stats().model_bytes.values())
    tight = placed("resident", tmp_path, whole + 2_000_000)
    assert tight.fallback.retries
    assert tight.device.peak_bytes <= whole + 2_000_000
    assert tight.models.stats().evictions > 0
    assert np.abs(tight.picture.astype(int) - plain).max() <= 1


class ShardOfACard(EmulatedDevice):
    """A card of which another process took 115 MB after the plan was made."""

    def __init__(self, total_bytes: int) -> None:
        super().__init__(total_bytes - 115_000_000)


def test_the_set_up_and_requests_go_on_where_memory_was_taken_after_the_plan(
    plain: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime_module, "EmulatedDevice", ShardOfACard)
    run = run_emulated(None, 170_000_000, tmp_path)
    assert "does not fit as planned" in caplog.text
    assert np.abs(run.picture.astype(int) - plain).max() <= 1


def test_a_placement_that_keeps_less_on_the_device_has_a_lower_peak(runs: dict[Kind, Run]) -> None:
    peaks = [runs[kind].device.peak_bytes for kind in ("resident", "model offload", "block offload", "layer offload")]
    assert (
        runs["block offload"].device.peak_bytes < runs["partial"].device.peak_bytes < runs["resident"].device.peak_bytes
    )
    assert peaks == sorted(peaks, reverse=True) and peaks[1] < 0.8 * peaks[0]


def test_resident_models_move_once_and_the_others_leave_nothing(runs: dict[Kind, Run]) -> None:
    for kind, run in runs.items():
        device, models = run.device, run.models
        whole = sum(models.stats().model_bytes.values())
        if kind == "resident":
            assert device.bytes_uploaded == whole and device.allocated_bytes >= whole
        elif kind == "partial":
            assert whole / 8 < device.allocated_bytes < whole / 2
        else:
            # what a prediction remembers, such as the prompt's embeddings, is small
            assert device.allocated_bytes < 2_000_000, kind


def test_a_card_that_is_too_small_is_refused_before_anything_is_read() -> None:
    settings = replace(Settings(), model="embedded")
    files = find_files(settings)
    with pytest.raises(MemoryPlanError, match="are missing"):
        plan_device(DEVICE, files.spec(), files.workload(settings), 5_000_000)


def test_without_a_card_of_its_own_everything_stays() -> None:
    settings = replace(Settings(), model="embedded")
    files = find_files(settings)
    runtime: DeviceRuntime = plan_device(DEVICE, files.spec(), files.workload(settings))
    assert set(runtime.kinds.values()) == {"resident"}
