"""Where models live: every placement computes the same, moves what the plan says, and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch
from torch import nn

from backend.devices.emulated import EmulatedDevice
from backend.model_cache_optimizer import ModelCache
from backend.offload.placements import PLACED_MODELS
from backend.planning.costs import KINDS, Kind

MIB = 2**20


class Blocks(nn.Module):
    """Three equal blocks of two layers, and a layer before them, as the large models are built. 64 KiB a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(128, 128, bias=False)
        self.transformer_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 128, bias=False), nn.Linear(128, 128, bias=False)) for _ in range(3)
        )
        self.register_buffer("shift", torch.ones(128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.shift
        for block in self.transformer_blocks:
            x = x + block(x)
        return x


LAYER = 128 * 128 * 4
BUFFER = 128 * 4
WHOLE = 7 * LAYER + BUFFER
STANDING = {"resident": WHOLE, "model offload": WHOLE, "block offload": LAYER + BUFFER, "layer offload": 0}
MOVED = {"resident": WHOLE, "model offload": WHOLE, "block offload": WHOLE, "layer offload": WHOLE - BUFFER}
PEAK = {"resident": WHOLE, "model offload": WHOLE, "block offload": 5 * LAYER + BUFFER, "layer offload": LAYER + BUFFER}


def cache_of(kind: Kind, device: EmulatedDevice, *names: str, headroom: int = 0) -> ModelCache:
    cache = ModelCache(torch.device("cpu"), device, dict.fromkeys(names, kind), headroom)
    for name in names:
        cache.register(name, Blocks)
    return cache


@pytest.mark.parametrize("kind", KINDS)
class TestEveryPlacement:
    def test_computes_the_same_bits(self, kind: Kind) -> None:
        x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = Blocks().eval()(x)
            device = EmulatedDevice(MIB)
            with device, cache_of(kind, device, "model").on_device("model") as (module,):
                assert torch.equal(module(x), expected)
                assert torch.equal(module(x), expected)

    def test_has_the_peak_that_the_plan_counts_on(self, kind: Kind) -> None:
        device = EmulatedDevice(MIB)
        cache = cache_of(kind, device, "model")
        cache.load("model")
        with torch.inference_mode(), device, cache.on_device("model") as (module,):
            module(torch.zeros(1, 128))
        assert device.peak_bytes == pytest.approx(PEAK[kind], abs=8 * BUFFER)  # and a few vectors of activations

    def test_moves_its_bytes_once_a_loan_or_once_a_forward(self, kind: Kind) -> None:
        device = EmulatedDevice(MIB)
        cache = cache_of(kind, device, "model")
        cache.load("model")
        with torch.inference_mode(), device, cache.on_device("model") as (module,):
            for _ in range(2):
                module(torch.zeros(1, 128))
        once = {
            "resident": WHOLE,
            "model offload": WHOLE,
            "block offload": 2 * WHOLE - STANDING["block offload"],
            "layer offload": 2 * (WHOLE - BUFFER) + 2 * BUFFER,
        }
        assert cache.stats().bytes_moved == pytest.approx(once[kind], abs=2 * BUFFER)

    def test_gives_all_memory_back_when_it_has_to_leave(self, kind: Kind) -> None:
        device = EmulatedDevice(2 * MIB)
        cache = cache_of(kind, device, "model")
        cache.load("model")
        with torch.inference_mode(), device:
            with cache.on_device("model") as (module,):
                module(torch.zeros(1, 128))
            cache.release()
        gc.collect()
        assert device.allocated_bytes == (WHOLE if kind == "resident" else 0)

    def test_an_error_in_the_middle_leaves_nothing_behind(self, kind: Kind) -> None:
        device = EmulatedDevice(2 * MIB)
        cache = cache_of(kind, device, "model")
        cache.load("model")
        with torch.inference_mode(), device:
            with cache.on_device("model") as (module,):
                module.transformer_blocks[1].register_forward_pre_hook(fail)
                with pytest.raises(ZeroDivisionError):
                    module(torch.zeros(1, 128))
            cache.release()
        gc.collect()
        assert device.allocated_bytes == (WHOLE if kind == "resident" else 0)


def fail(module: nn.Module, inputs: object) -> None:
    raise ZeroDivisionError


class TestCache:
    def test_a_swapped_model_makes_room_for_the_next_but_not_for_one_that_is_lent_with_it(self) -> None:
        device = EmulatedDevice(2 * WHOLE)
        cache = cache_of("model offload", device, "a", "b", "c")
        with cache.on_device("a", "b"):
            assert device.allocated_bytes == 2 * WHOLE
        with cache.on_device("c"):
            assert device.allocated_bytes == WHOLE
        assert cache.stats().evictions == 2

    def test_a_lent_model_stays_while_others_are_borrowed_inside(self) -> None:
        device = EmulatedDevice(2 * WHOLE)
        cache = cache_of("model offload", device, "a", "b")
        with cache.on_device("a") as (outer,), cache.on_device("b"):
            assert device.allocated_bytes == 2 * WHOLE
            with cache.on_device("a") as (inner,):
                assert inner is outer

    def test_the_same_model_twice_in_a_row_moves_once(self) -> None:
        cache = cache_of("model offload", EmulatedDevice(WHOLE), "a")
        for _ in range(3):
            with cache.on_device("a"):
                pass
        stats = cache.stats()
        assert (stats.misses, stats.hits, stats.bytes_moved) == (1, 2, WHOLE)

    def test_prefetch_brings_a_model_only_where_there_is_room(self) -> None:
        cramped = cache_of("model offload", EmulatedDevice(2 * WHOLE), "a", "b", headroom=1)
        cache = cache_of("model offload", EmulatedDevice(2 * WHOLE), "a", "b")
        for name in ("a", "b"):
            cache.load(name)
            cramped.load(name)
        with cramped.on_device("a"):
            assert not cramped.prefetch("b")
        with cache.on_device("a"):
            assert cache.prefetch("b")
            assert not cache.prefetch("b")
        moved = cache.stats().bytes_moved
        with cache.on_device("b"):
            assert cache.stats().bytes_moved == moved and cache.stats().prefetches == 1

    def test_a_model_that_does_not_fit_is_an_out_of_memory_error_and_the_loan_is_undone(self) -> None:
        device = EmulatedDevice(WHOLE + LAYER)
        cache = cache_of("model offload", device, "a", "b")
        with cache.on_device("a"):
            with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"), cache.on_device("b"):
                pass
            gc.collect()
            assert device.allocated_bytes == WHOLE
        with cache.on_device("b"):
            assert device.allocated_bytes == WHOLE

    def test_threads_share_one_loan_each_gets_the_whole_model(self) -> None:
        cache = cache_of("model offload", EmulatedDevice(WHOLE), "a")
        results: list[bool] = []

        def work() -> None:
            with torch.inference_mode(), cache.on_device("a") as (module,):
                results.append(bool(module(torch.zeros(1, 128)).isfinite().all()))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 4 and cache.stats().misses == 1


class TestEmulatedDevice:
    def test_counts_what_is_made_inside_until_its_last_user_lets_go(self) -> None:
        with EmulatedDevice(MIB) as device:
            a = torch.zeros(1000)
            view = a[10:]
            assert device.allocated_bytes == 4000
            del a
            assert device.allocated_bytes == 4000
            del view
            assert device.allocated_bytes == 0 and device.peak_bytes == 4000

    def test_does_not_count_what_is_made_outside(self) -> None:
        outside = torch.zeros(1000)
        with EmulatedDevice(MIB) as device:
            outside.add_(1)
        assert device.peak_bytes == 0

    def test_raises_the_same_error_as_a_card_when_it_is_full(self) -> None:
        with EmulatedDevice(5000) as device:
            kept = torch.zeros(1000)
            with pytest.raises(torch.OutOfMemoryError, match="capacity of 5000 bytes of which 1000 bytes are free"):
                torch.zeros(1000)
            assert device.allocated_bytes == kept.nbytes

    def test_copies_take_as_long_as_the_bandwidth_says(self) -> None:
        device = EmulatedDevice(MIB, copy_bandwidth=4_000_000)
        begin = time.perf_counter()
        device.upload(torch.zeros(100_000))
        assert 0.1 <= time.perf_counter() - begin < 10


def test_every_kind_of_the_plan_has_its_residence() -> None:
    assert set(PLACED_MODELS) == set(KINDS)
