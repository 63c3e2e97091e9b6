"""What the device computes in: bfloat16 only where it is multiplied faster; it draws the same picture to the eye."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.pictures import PROMPT

from backend.core.errors import SettingsError
from backend.core.settings import Settings
from backend.devices import cuda_checks, probe
from backend.devices.cuda_checks import why_no_cuda
from backend.devices.probe import host_memory, probe_device
from modules.app.service import Service, start
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest

CPU_FLAGS = next(
    line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
).split()


def test_a_processor_with_amx_computes_in_bfloat16_and_any_other_in_float32() -> None:
    assert probe_device("cpu", "auto").dtype is (torch.bfloat16 if "amx_bf16" in CPU_FLAGS else torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_is_taken(dtype: str) -> None:
    assert probe_device("cpu", dtype).dtype is getattr(torch, dtype)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A card and its driver, of which only the questions about them are answered here."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda_checks, "driver_cuda_version", lambda: (13, 0))
    monkeypatch.setattr(probe, "driver_cuda_version", lambda: (13, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20, 24))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_120", "compute_120"])
    return monkeypatch


@pytest.mark.parametrize(
    ("dtype", "drawing", "upscaling"),
    [
        ("auto", torch.bfloat16, torch.float16),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
        ("float16", torch.float16, torch.float16),
        ("float32", torch.float32, torch.float32),
    ],
)
def test_on_cuda_an_upscaler_computes_in_half_precision_too(
    card: pytest.MonkeyPatch, dtype: str, drawing: torch.dtype, upscaling: torch.dtype
) -> None:
    device = probe_device("auto", dtype)
    assert (device.dtype, device.upscaler_dtype) == (drawing, upscaling)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_card_that_multiplies_bfloat16_slowly_computes_in_float16(
    card: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert probe_device("cuda", "auto").dtype is dtype


OLD_DRIVER = {"driver": (12, 4), "available": False}
FAULTS = [
    (OLD_DRIVER, "supports CUDA 12.4 and this torch is built for 13.0; update the driver to 580 or newer"),
    ({"driver": None, "available": False}, "there is no NVIDIA driver (libcuda.so.1); install it, or start"),
    ({"available": False}, "the NVIDIA driver shows no card; look at nvidia-smi"),
    ({"capability": (6, 1)}, "a card has compute capability 6.1 and this torch needs 7.5 or newer"),
    ({"capability": (7, 5), "compiled": ["sm_80", "sm_90a"]}, "capability 7.5 and this torch needs 8.0 or newer"),
    ({"built_for": None, "available": False}, "this torch is built for the CPU; install the CUDA build"),
]


def broken(card: pytest.MonkeyPatch, fault: dict[str, Any]) -> None:
    for name, (owner, attribute) in {
        "available": (torch.cuda, "is_available"),
        "capability": (torch.cuda, "get_device_capability"),
        "compiled": (torch.cuda, "get_arch_list"),
        "driver": (cuda_checks, "driver_cuda_version"),
    }.items():
        if name in fault:
            card.setattr(owner, attribute, lambda name=name: fault[name])
    card.setattr(probe, "driver_cuda_version", cuda_checks.driver_cuda_version)
    card.setattr(torch.version, "cuda", fault.get("built_for", "13.0"))


@pytest.mark.parametrize(("fault", "line"), FAULTS)
def test_a_card_that_cannot_be_used_stops_the_set_up_with_one_line(
    card: pytest.MonkeyPatch, fault: dict[str, Any], line: str
) -> None:
    broken(card, fault)
    with pytest.raises(SettingsError) as refusal:
        probe_device("cuda", "auto")
    assert line in str(refusal.value) and "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("device is 'cuda' but") and "set 'device' to 'cpu'" in str(refusal.value)


@pytest.mark.parametrize(("fault", "line"), FAULTS)
def test_auto_goes_on_with_the_cpu_and_says_so_where_there_is_a_driver(
    card: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: dict[str, Any], line: str
) -> None:
    broken(card, fault)
    assert probe_device("auto", "auto").kind == "cpu"
    told = [record.message for record in caplog.records]
    has_driver = fault.get("driver", True) is not None and fault.get("built_for", True) is not None
    assert len(told) == has_driver and all(line in one for one in told)


def test_a_newer_driver_and_a_newer_card_are_taken(card: pytest.MonkeyPatch) -> None:
    broken(card, {"driver": (14, 1), "capability": (12, 1)})
    assert probe_device("cuda", "auto").kind == "cuda"


def test_cpu_asks_no_driver(card: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    broken(card, OLD_DRIVER)
    assert probe_device("cpu", "auto").kind == "cpu" and not caplog.records


def test_this_machine_is_asked_without_a_card() -> None:
    assert why_no_cuda() or torch.cuda.is_available()


@pytest.fixture(scope="module")
def rounded() -> Service:
    return start(replace(Settings(), model="embedded", dtype="bfloat16", warm_up=False, log_level="WARNING"))


def test_in_bfloat16_the_picture_is_the_same_to_the_eye(service: Service, rounded: Service) -> None:
    request = ImageRequest(
        prompt=PROMPT, width=256, height=256, seed=3, num_inference_steps=8, adetailer=(AdetailerUnit(),)
    )
    exact, nearly = (np.asarray(one.pipeline.run(request).pictures[0].image, float) for one in (service, rounded))
    assert 10 * np.log10(255**2 / np.square(exact - nearly).mean()) > 30


def test_the_plan_counts_what_is_held(service: Service, rounded: Service) -> None:
    for one, item in ((service, 4), (rounded, 2)):
        held, planned = one.models.stats().model_bytes, one.spec.components
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            parameters = planned[name].parameters
            assert planned[name].size() == item * parameters and held[name] == pytest.approx(
                item * parameters, rel=0.02
            ), name
        assert planned["upscaler"].size() == item * planned["upscaler"].parameters
        assert planned["upscaler"].size() == pytest.approx(held["upscaler"], rel=0.02)


GIB = 2**30
MEMINFO = f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {50 * 2**20} kB"


def machine(root: Path, files: dict[str, object]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_pages_of_files_are_available_memory_of_a_control_group(tmp_path: Path) -> None:
    """Of 32 GiB 30 are in use, of which 27 are pages of files that were read."""
    group = "sys/fs/cgroup/memory"
    statistics = f"anon {3 * GIB}\nfile {28 * GIB}\ninactive_file {20 * GIB}\nactive_file {7 * GIB}\nshmem {GIB}"
    new = machine(
        tmp_path / "2",
        {f"{group}.max": 32 * GIB, f"{group}.current": 30 * GIB, f"{group}.stat": statistics},
    )
    assert host_memory(new) == (32 * GIB, 29 * GIB)
    statistics = f"inactive_file 1\ntotal_inactive_file {20 * GIB}\ntotal_active_file {7 * GIB}"
    old = {"limit_in_bytes": 32 * GIB, "usage_in_bytes": 30 * GIB, "stat": statistics}
    assert host_memory(machine(tmp_path / "1", {f"{group}/memory.{name}": one for name, one in old.items()})) == (
        32 * GIB,
        29 * GIB,
    )


def test_a_control_group_without_a_limit_or_with_a_higher_one_leaves_the_machines_memory(tmp_path: Path) -> None:
    unlimited = {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": GIB}
    assert host_memory(machine(tmp_path, unlimited)) == (64 * GIB, 50 * GIB)
    higher = {"sys/fs/cgroup/memory.max": 100 * GIB, "sys/fs/cgroup/memory.stat": "anon 1"}
    assert host_memory(machine(tmp_path, higher)) == (64 * GIB, 50 * GIB)
