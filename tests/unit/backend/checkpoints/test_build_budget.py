"""A network is built only in proportion to the file that describes it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.refusals import refusal
from torch import nn

from backend.checkpoints.build_budget import BuildBudget, building
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from modules.upscaling.tiled import load_upscaler_network

UPSCALER = ROOT / "weights" / "embedded" / "upscaler.safetensors"


def test_what_fits_its_file_is_built_as_ever() -> None:
    torch.manual_seed(1)
    plain = [nn.Linear(64, 64), nn.BatchNorm2d(8), torch.rand(3)]
    torch.manual_seed(1)
    with BuildBudget("file", 20_000, 7):
        budgeted = [nn.Linear(64, 64), nn.BatchNorm2d(8), torch.rand(3)]
    assert torch.equal(plain[0].weight, budgeted[0].weight)  # type: ignore[union-attr,arg-type]
    assert torch.equal(plain[2], budgeted[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_far_larger_is_refused_before_it_has_memory(device: str) -> None:
    message = "^file describes a network that is far larger than its weights"
    with pytest.raises(WeightsError, match=message), BuildBudget("file", 1000, 2):
        torch.ones(10**7, 10**5, device=device)


def test_layers_without_end_are_refused_soon() -> None:
    begin = time.process_time()
    with pytest.raises(WeightsError), BuildBudget("file", 10**6, 10), torch.device("meta"):
        nn.ModuleList([nn.Linear(8, 8) for _ in range(10**8)])
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "tensors",
    [
        {"body.100000000.rdb1.conv1.weight": torch.zeros(1)},
        {"conv_first.weight": torch.zeros(100_000, 1, 1, 1)},
        {"conv_first.weight": torch.zeros(10**6, 0, 3, 3)},
        {f"body.{index}.rdb1.conv1.weight": torch.zeros(1) for index in range(900)},
    ],
    ids=["a block number", "a width", "a width without data", "blocks"],
)
def test_an_upscaler_whose_names_and_shapes_claim_more_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file({**load_file(UPSCALER), **tensors}, tmp_path / "a.safetensors")
    begin = time.process_time()
    assert refusal(lambda: load_upscaler_network(tmp_path / "a.safetensors")).startswith("a.safetensors")
    assert time.process_time() - begin < 5


def test_whatever_a_library_raises_is_a_line_and_its_cause() -> None:
    def fail(error: Exception) -> None:
        with building("a/config.json", [UPSCALER], 1, "get it again"):
            raise error

    class Foreign(Exception):
        """Of no base that anybody else knows, as those of tokenizers."""

    for error in (Foreign("two\nlines"), KeyError("x"), RuntimeError("/tmp/secret")):
        with pytest.raises(WeightsError) as caught:
            fail(error)
        assert str(caught.value) == "a/config.json is damaged or does not fit the files beside it; get it again"
        assert caught.value.__cause__ is error
    assert refusal(lambda: fail(ModuleNotFoundError(name="gptqmodel"))).startswith(
        "a/config.json needs the package gptqmodel, which is not installed"
    )
    assert "never run" in refusal(lambda: fail(ValueError("set trust_remote_code=True")))


def test_a_lack_of_memory_stays_what_it_is() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)), untrusted("a"):
            raise error
