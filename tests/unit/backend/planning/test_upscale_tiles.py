"""The plan counts the tiles that the upscaler makes, and takes them as large as fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.model_specs import FLUX_DEV
from support.upscaling import picture
from torch import nn

from backend.devices.emulated import EmulatedDevice
from backend.memory_management import DeviceMemory, Workload, plan_memory
from backend.planning.activations import prediction_steps
from backend.planning.companions import ESRGAN_WORK
from backend.planning.upscale_tiles import CONTEXT, SMALLEST_TILE, count_tiles, smaller_tiles
from modules.upscaling.tiled import Upscaler, UpscalerNetwork

CARD = DeviceMemory("cuda", 80 * 10**9)
UPSCALED = Workload(1024, 1024, scale=2)


class CountingNetwork(nn.Module):
    """Looks farther than any context, doubles the sides and counts the pixels that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.far = nn.Conv2d(3, 3, 2 * CONTEXT + 1, padding=CONTEXT, groups=3, bias=False)
        self.given: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.given.append(pixels.shape[2] * pixels.shape[3])
        return pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("size", [(64, 64), (65, 33), (200, 70), (131, 131)])
@pytest.mark.parametrize("tile", [32, 64, 200])
def test_the_network_is_given_what_the_plan_counts(size: tuple[int, int], tile: int) -> None:
    network = CountingNetwork()
    Upscaler(UpscalerNetwork(network, 2), tile).upscale(picture(*size), 2)
    counted = count_tiles(*size, tile)
    assert (len(network.given), sum(network.given)) == (counted.tiles, counted.total)
    assert max(network.given) <= counted.largest


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), tile=st.integers(64, 1100))
def test_a_smaller_tile_never_needs_more_memory_and_never_less_work(width: int, height: int, tile: int) -> None:
    sides = smaller_tiles(tile)
    counts = [count_tiles(width, height, side) for side in sides]
    assert all(a.total <= b.total for a, b in zip(counts, counts[1:], strict=False))
    assert all(a.largest >= b.largest or a.tiles == 1 for a, b in zip(counts, counts[1:], strict=False))
    assert sides[0] == tile and sides[-1] >= SMALLEST_TILE and sides == sorted(sides, reverse=True)


def test_half_a_tile_cuts_a_picture_into_two_times_two() -> None:
    assert [count_tiles(1024, 1024, side).tiles for side in smaller_tiles(1024)[:4]] == [1, 4, 16, 64]


def test_a_picture_that_fits_is_one_tile_of_the_least_work() -> None:
    plan = plan_memory(CARD, FLUX_DEV, UPSCALED)
    [step] = [
        step for step in prediction_steps(replace(UPSCALED, upscale_tile=1024), FLUX_DEV) if step.stage == "upscale"
    ]
    assert plan.upscale_tile == 1024
    assert step.forwards * step.work == ESRGAN_WORK * 1024**2  # 37.6 TFLOP; tiles of 192 need 84.6


@pytest.mark.parametrize(("gigabytes", "longest"), [(48, 1024), (36.5, 520)])
def test_the_tile_shrinks_before_a_model_leaves_the_device(gigabytes: float, longest: int) -> None:
    plan = plan_memory(replace(CARD, total_bytes=int(gigabytes * 1e9)), FLUX_DEV, UPSCALED)
    assert plan.upscale_tile <= longest


def test_a_cpu_takes_no_larger_tiles_than_are_of_use() -> None:
    plan = plan_memory(DeviceMemory("cpu", 200 * 10**9, None, 200 * 10**9), FLUX_DEV, UPSCALED)
    assert plan.upscale_tile == 256


def test_the_setting_limits_the_tile() -> None:
    assert plan_memory(CARD, FLUX_DEV, replace(UPSCALED, upscale_tile=192)).upscale_tile == 192


def test_blending_needs_no_more_than_the_plan_adds_for_it() -> None:
    """Four times the side, and a network that needs next to nothing itself."""
    image, device = picture(300, 300), EmulatedDevice(10**9)
    network = UpscalerNetwork(Thin(), 4)
    with device:
        Upscaler(network, 300).upscale(image, 4)
    row = 300 * 300 * 4 * 4 * 3 * 4
    # the row, the tile that is added to it, and the bytes that are made of it
    assert row < device.peak_bytes < 2.7 * row


class Thin(nn.Module):
    """Four times the sides by repetition."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * self.scale).repeat_interleave(4, 2).repeat_interleave(4, 3)
