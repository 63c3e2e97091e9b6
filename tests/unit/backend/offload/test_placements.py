"""Every placement computes the same, moves the bytes that the plan counts on, and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from backend.devices.emulated import EmulatedDevice
from backend.model_cache_optimizer import ModelCache
from backend.offload.placements import placed_model
from backend.planning.costs import KINDS, Kind

MIB = 2**20


class Blocks(nn.Module):
    """Five equal blocks of two layers, and a layer before them, as the large models are built. 64 KiB a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(128, 128, bias=False)
        self.transformer_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 128, bias=False), nn.Linear(128, 128, bias=False)) for _ in range(5)
        )
        self.register_buffer("shift", torch.ones(128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.shift
        for block in self.transformer_blocks:
            x = x + block(x)
        return x


LAYER = 128 * 128 * 4
BUFFER = 128 * 4
WHOLE = 11 * LAYER + BUFFER
KEPT = 2
"""Blocks that stay when a model is partial: the first and the third; the others are streamed."""
STANDING = {"resident": WHOLE, "partial": 5 * LAYER + BUFFER}
PEAK = {
    "resident": WHOLE,
    "model offload": WHOLE,
    "partial": STANDING["partial"] + 4 * LAYER,
    "block offload": 5 * LAYER + BUFFER,
    "layer offload": LAYER + BUFFER,
}
MOVED = {
    "resident": WHOLE,
    "model offload": WHOLE,
    # three of five blocks twice, and the first of them once more for a forward that does not come
    "partial": STANDING["partial"] + (2 * 3 + 1) * 2 * LAYER,
    "block offload": LAYER + BUFFER + (2 * 5 + 1) * 2 * LAYER,
    "layer offload": 2 * 11 * LAYER + BUFFER,
}
"""Bytes that two forwards in one loan move."""


def cache_of(kind: Kind, device: EmulatedDevice, *names: str, headroom: int = 0) -> ModelCache:
    cache = ModelCache(
        torch.device("cpu"),
        device,
        dict.fromkeys(names, kind),
        dict.fromkeys(names, headroom),
        kept_blocks=dict.fromkeys(names, KEPT),
    )
    for name in names:
        cache.register(name, Blocks)
    return cache


@pytest.mark.parametrize("kind", KINDS)
class TestEveryPlacement:
    def test_computes_the_same_bits(self, kind: Kind) -> None:
        x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = Blocks().eval()(x)
            device = EmulatedDevice(2 * MIB, pin_bytes=MIB // 2)  # some of the blocks in slabs, others not
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
        assert cache.stats().bytes_moved == MOVED[kind]

    def test_gives_all_memory_back_when_it_has_to_leave(self, kind: Kind) -> None:
        device = EmulatedDevice(2 * MIB)
        cache = cache_of(kind, device, "model")
        cache.load("model")
        with torch.inference_mode(), device:
            with cache.on_device("model") as (module,):
                module(torch.zeros(1, 128))
            cache.release()
        gc.collect()
        assert device.allocated_bytes == STANDING.get(kind, 0)

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
        assert device.allocated_bytes == STANDING.get(kind, 0)


def test_layers_that_share_their_weights_wait_once_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """As T5's two embeddings do."""
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    module = Blocks().eval()
    module.transformer_blocks[4][1].weight = module.first.weight
    pinned: list[int] = []
    device = EmulatedDevice(2 * MIB, pin_bytes=MIB)
    pin = device.pin
    monkeypatch.setattr(device, "pin", lambda size: (pinned.append(size), pin(size))[1])
    with torch.inference_mode():
        expected = module(x)
        placed = placed_model(module, device, "layer offload")
        assert sum(pinned) == 10 * LAYER + BUFFER
        with device:
            placed.load()
            assert torch.equal(module(x), expected) and torch.equal(module(x), expected)


def fail(module: nn.Module, inputs: object) -> None:
    raise ZeroDivisionError


class TestCache:
    def test_a_model_under_model_offload_makes_room_for_the_next_but_not_for_one_that_is_lent_with_it(self) -> None:
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

    def test_prefetch_leaves_room_for_the_step_that_runs_and_for_no_other(self) -> None:
        kinds: dict[str, Kind] = dict.fromkeys("abc", "model offload")
        cache = ModelCache(torch.device("cpu"), EmulatedDevice(2 * WHOLE), kinds, headroom={"a": 0, "c": WHOLE})
        for name in kinds:
            cache.register(name, Blocks)
            cache.load(name)
        with cache.on_device("a"):
            assert cache.prefetch("b")

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


class TestLoadingWhereMemoryWasTaken:
    """By another process, after the plan was made."""

    def test_a_resident_model_that_does_not_fit_is_offloaded_and_computes(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        device = EmulatedDevice(WHOLE + 3 * LAYER)
        cache = cache_of("resident", device, "first", "second")
        x = torch.ones(1, 128)
        cache.load("first")
        cache.load("second")
        assert device.allocated_bytes == WHOLE  # nothing of the second one was left behind
        told = [record.message.partition(" does not")[0] for record in caplog.records if record.levelno > 20]
        assert told == ["model offload for second"]
        with pytest.raises(torch.OutOfMemoryError), cache.on_device("second"):
            pass
        cache.offload_others(["second"])  # what the fallback of the request does
        with cache.on_device("second") as (second,):
            assert torch.equal(second(x), Blocks()(x))

    def test_another_error_is_raised_and_nothing_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = EmulatedDevice(10 * WHOLE)
        cache = cache_of("resident", device, "model")
        monkeypatch.setattr(device, "upload", broken_upload)
        with pytest.raises(RuntimeError, match="an illegal instruction"):
            cache.load("model")


def broken_upload(*arguments: object) -> list[torch.Tensor]:
    raise RuntimeError("CUDA error: an illegal instruction was encountered")


class TestDowngrade:
    def test_the_other_resident_models_become_model_offload(self) -> None:
        device = EmulatedDevice(3 * WHOLE)
        cache = cache_of("resident", device, "a", "b", "c")
        for name in ("a", "b", "c"):
            cache.load(name)
        assert cache.offload_others(["b"]) == "model offload for a, c"
        gc.collect()
        assert device.allocated_bytes == WHOLE
        assert cache.offload_others(["b"]) == ""

    def test_models_that_have_blocks_are_streamed_by_blocks_and_then_by_layers(self) -> None:
        device = EmulatedDevice(2 * WHOLE)
        cache = cache_of("resident", device, "a", "b")
        cache.load("a")
        x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = Blocks().eval()(x)
            for change in (
                "partial with 2 blocks for a",
                "partial with 1 blocks for a",
                "block offload for a",
                "layer offload for a",
                "",
            ):
                assert cache.stream(["a"]) == change
                with device, cache.on_device("a") as (module,):
                    assert torch.equal(module(x), expected)

    def test_a_model_without_blocks_is_not_streamed(self) -> None:
        cache = ModelCache(torch.device("cpu"), EmulatedDevice(MIB))
        cache.register("a", lambda: nn.Linear(8, 8))
        cache.load("a")
        assert cache.stream(["a"]) == ""

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_model_that_is_lent_stays_as_it_is(self, kind: Kind) -> None:
        device = EmulatedDevice(2 * MIB)
        cache = cache_of(kind, device, "a")
        x = torch.zeros(1, 128)
        with torch.inference_mode(), device, cache.on_device("a") as (module,):
            loaded, expected = device.allocated_bytes, module(x)
            assert cache.offload_others([]) == "" and cache.stream(["a"]) == ""
            assert torch.equal(module(x), expected)
            del expected
            assert device.allocated_bytes == loaded
        with cache.on_device("a") as (again,):
            assert again is module

    def test_a_model_that_does_not_fit_into_the_hosts_memory_stays_on_the_device(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("backend.model_cache_optimizer.host_memory", lambda: (MIB, WHOLE - 1))
        cache = cache_of("resident", EmulatedDevice(WHOLE), "a")
        cache.load("a")
        assert cache.offload_others([]) == "" and cache.stream(["a"]) == ""

    def test_where_the_host_computes_there_is_nothing_to_change(self) -> None:
        cache = ModelCache(torch.device("cpu"))
        cache.register("a", Blocks)
        cache.load("a")
        assert cache.offload_others([]) == "" and cache.stream(["a"]) == ""


class TestThreads:
    """Of a cache that two threads use."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_layer_computes_while_its_weights_are_not_on_the_device(self, kind: Kind) -> None:
        device = EmulatedDevice(4 * MIB)
        cache = cache_of(kind, device, "a")
        model = Blocks()
        cache.register("a", lambda: model)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        on_host = {layer.weight.data.data_ptr() for layer in layers}
        computed: list[bool] = []

        def checked(layer: nn.Linear, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            computed.append(layer.weight.data_ptr() not in on_host)
            return forward(x)

        for layer in layers:  # inside of what streams it
            layer.forward = partial(checked, layer, layer.forward)  # type: ignore[method-assign]
        in_threads(lambda: [forward_once(cache) for _ in range(40)])
        assert len(computed) == 2 * 40 * 11 and all(computed)

    def test_a_streamed_model_is_lent_to_one_thread_at_a_time_which_may_borrow_it_again(self) -> None:
        cache = cache_of("block offload", EmulatedDevice(4 * MIB), "a", "b")
        lent: list[int] = []
        most: list[int] = []

        def work() -> None:
            for _ in range(20):
                with cache.on_device("a"), cache.on_device("b", "a"):
                    lent.append(1)
                    most.append(len(lent))
                    time.sleep(0.001)
                    lent.pop()

        in_threads(work)
        assert len(most) == 40 and set(most) == {1}

    def test_a_model_that_is_not_streamed_is_lent_to_both_at_once(self) -> None:
        cache = cache_of("model offload", EmulatedDevice(WHOLE), "a")
        both = threading.Barrier(2, timeout=30)

        def work() -> None:
            with cache.on_device("a"):
                both.wait()

        in_threads(work)


def forward_once(cache: ModelCache) -> None:
    with torch.inference_mode(), cache.on_device("a") as (module,):
        module(torch.zeros(1, 128))


def in_threads(work: Callable[[], object]) -> None:
    """Runs ``work`` in two threads at once; raises the first error of either."""
    with ThreadPoolExecutor(2) as pool:
        for result in [pool.submit(work) for _ in range(2)]:
            result.result()
