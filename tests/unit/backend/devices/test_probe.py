"""What the device computes in: bfloat16 only where it is multiplied faster; it draws the same picture to the eye."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.pictures import PROMPT

from backend.core.settings import Settings
from backend.devices.probe import Device, probe_device
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


def cuda_device(monkeypatch: pytest.MonkeyPatch, dtype: str) -> Device:
    """What would be chosen on a card, of which only the questions about it are answered here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20, 24))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    return probe_device("auto", dtype)


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
    monkeypatch: pytest.MonkeyPatch, dtype: str, drawing: torch.dtype, upscaling: torch.dtype
) -> None:
    device = cuda_device(monkeypatch, dtype)
    assert (device.dtype, device.upscaler_dtype) == (drawing, upscaling)


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
        held, planned = one.models.stats().model_bytes, one.sizes.components
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            parameters = planned[name].parameters
            assert planned[name].size() == item * parameters and held[name] == pytest.approx(
                item * parameters, rel=0.02
            ), name
        assert planned["upscaler"].size() == item * planned["upscaler"].parameters
        assert planned["upscaler"].size() == pytest.approx(held["upscaler"], rel=0.02)
