"""Measures what the memory plan assumes of a card: copies from pinned host memory, and one block of a transformer.

It takes a few tenths of a second at set-up. Measured figures vary a little from start to start, and a plan must not: it
decides how far weights are rounded, and so the pixels. So the figures of the card's name stand, and a measured one
counts in large steps only where it is far from them: a card in a narrow slot, with a limit of its power, or unknown.
A card that is known by name is never taken for a faster one, and no other counts with more than was measured.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from backend.planning.costs import DeviceMemory

logger = logging.getLogger(__name__)

REPEATS = 5
STEP = 1.5
"""Measured figures count in steps of this factor, so those within a fifth of the expected one do not count."""
SUSTAINED = 0.85
"""The share of one block's rate that the whole compiled transformer sustains. An H200 had 657 to 681 TFLOP/s here and
562 in the 28 steps of a picture (``bench/results/gpu.md``)."""
FARTHEST = 5
"""How many steps there are. What is beyond them is a mistake of the measurement."""


@dataclass(frozen=True)
class Speed:
    """Bytes per second from pinned host memory, and floating point operations per second of one block in the type that
    the models compute in."""

    copy_bandwidth: float
    flops: float


@dataclass(frozen=True)
class Sizes:
    """What is measured with: a single block of FLUX.1 at 1024 x 1024 unless something else is said. ``copied`` is in
    bytes."""

    copied: int = 2**27
    tokens: int = 4608
    width: int = 3072
    heads: int = 24

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.width

    @property
    def work(self) -> float:
        """Floating point operations of the block."""
        layers = self.width * (3 * self.width + self.inner) + (self.width + self.inner) * self.width
        return 2.0 * self.tokens * layers + 4.0 * self.tokens**2 * self.width


def measure_speed(device: torch.device, dtype: torch.dtype, sizes: Sizes | None = None) -> Speed | None:
    """The best of a few runs; None where the device has no memory left for them (about 1 GB).

    Copies are measured before the block and after it, each time from other memory: an H200 once had 24 GB/s, and at
    least 41 in ten other set-ups.
    """
    sizes = sizes or Sizes()
    try:
        with torch.inference_mode():
            copies = _copy(device, sizes), _copy(device, sizes)
            before = _seconds(copies[0], device)
            computing = _seconds(_block(device, dtype, sizes), device)
            copying = min(before, _seconds(copies[1], device))
            return Speed(sizes.copied / copying, sizes.work / computing)
    except torch.OutOfMemoryError:
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            if hasattr(torch.accelerator, "empty_host_cache"):  # torch 2.11 has none
                torch.accelerator.empty_host_cache()


def with_measured(memory: DeviceMemory, speed: Speed | None, known: bool) -> DeviceMemory:
    """The device with what was measured of it, in steps of :data:`STEP` from what was expected. Only less than that
    counts where the card is ``known`` by name."""
    if speed is None:
        return memory
    most = 0 if known else FARTHEST
    bandwidth = _in_steps("copies from the host", memory.copy_bandwidth, speed.copy_bandwidth, most, "GB/s", 1e9)
    flops = _in_steps("computing", memory.flops, SUSTAINED * speed.flops, most, "TFLOP/s", 1e12)
    return replace(memory, copy_bandwidth=bandwidth, flops=flops)


def _in_steps(what: str, expected: float, measured: float, most: int, unit: str, scale: float) -> float:
    exact = math.log(measured / expected, STEP) if measured > 0 else 0
    steps = math.floor(exact) if exact > 0 else round(exact)
    if steps == 0 or not -FARTHEST <= steps <= most:
        return expected
    counted = expected * STEP**steps
    logger.info(
        "%s: %.3g %s measured, %.3g expected; the plan counts with %.3g",
        what,
        measured / scale,
        unit,
        expected / scale,
        counted / scale,
    )
    return counted


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of the fastest run after one that does not count."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best = math.inf
    run()
    for _ in range(REPEATS):
        synchronize()
        begin = time.perf_counter()
        run()
        synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def _copy(device: torch.device, sizes: Sizes) -> Callable[[], object]:
    host = torch.empty(sizes.copied, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(sizes.copied, dtype=torch.uint8, device=device)
    return lambda: target.copy_(host, non_blocking=True)


def _block(device: torch.device, dtype: torch.dtype, sizes: Sizes) -> Callable[[], object]:
    """Attention and feed-forward layer of one block, on noise: zeros take less power and so are faster."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    first, last = noise(3 * sizes.width + sizes.inner, sizes.width), noise(sizes.width, sizes.width + sizes.inner)
    tokens = noise(1, sizes.tokens, sizes.width)

    def run() -> torch.Tensor:
        mixed, hidden = functional.linear(tokens, first).split((3 * sizes.width, sizes.inner), dim=2)
        query, key, value = mixed.unflatten(2, (3, sizes.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return functional.linear(torch.cat([attended, functional.gelu(hidden, approximate="tanh")], dim=2), last)

    return run
