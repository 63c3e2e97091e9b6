"""The embedded family in every placement of the memory plan, on the emulated device: the same bits, less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROMPT

from backend.computer import Computer, plan_device
from backend.cost_model import KINDS, Kind
from backend.devices import Device
from backend.emulated_device import EmulatedDevice
from backend.memory_management import MemoryPlanError
from backend.model_cache_optimizer import ModelCache
from backend.out_of_memory import Ladder
from backend.settings import Settings
from modules.assembly import assemble, find_files
from modules.request import AdetailerUnit, ImageRequest
from modules.startup import Service

STREAMED = ("text_encoder_2", "transformer")
"""The models that have blocks; the others can only be resident or swapped."""
REQUEST = ImageRequest(prompt=PROMPT, width=256, height=256, seed=3, num_inference_steps=2, adetailer=(AdetailerUnit(),))
DEVICE = Device("cpu", "emulated", 0, 0, None, torch.float32)


def placed(kind: Kind, folder: Path) -> tuple[np.ndarray, EmulatedDevice, ModelCache]:
    """The picture of the request with every model placed as ``kind`` says, as far as it can be."""
    settings = replace(Settings(), model="embedded")
    files = find_files(settings)
    computer = plan_device(DEVICE, files.sizes(), files.workload(settings), 10**9)
    device = computer.transfers
    assert isinstance(device, EmulatedDevice)
    lighter: Kind = "swapped" if kind != "resident" else "resident"
    kinds: dict[str, Kind] = {name: kind if name in STREAMED else lighter for name in files.sizes().components}
    models = ModelCache(torch.device("cpu"), device, kinds)
    pipeline = assemble(files, settings, torch.float32, computer.plan, models, Ladder(), folder).pipeline
    for name in models.names():
        models.load(name)
    with device:
        picture = np.asarray(pipeline.run(REQUEST).pictures[0].image)
    models.release()
    return picture, device, models


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[np.ndarray, EmulatedDevice, ModelCache]]:
    return {kind: placed(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def test_every_placement_gives_the_same_bits(service: Service, runs: dict[Kind, tuple[np.ndarray, EmulatedDevice, ModelCache]]) -> None:
    plain = np.asarray(service.pipeline.run(REQUEST).pictures[0].image)
    for kind, (picture, _, _) in runs.items():
        assert np.array_equal(picture, plain), kind


def test_a_leaner_placement_has_a_lower_peak(runs: dict[Kind, tuple[np.ndarray, EmulatedDevice, ModelCache]]) -> None:
    peaks = [runs[kind][1].peak_bytes for kind in ("resident", "swapped", "grouped", "sequential")]
    assert peaks == sorted(peaks, reverse=True) and peaks[1] < 0.8 * peaks[0]


def test_resident_models_move_once_and_the_others_leave_nothing(runs: dict[Kind, tuple[np.ndarray, EmulatedDevice, ModelCache]]) -> None:
    for kind, (_, device, models) in runs.items():
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
