"""When memory is full every stage finishes with the same pictures in a way that needs less; other errors are raised
unchanged."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import PROMPT
from torch.utils._python_dispatch import TorchDispatchMode

from backend.core.timeline import Timeline
from backend.offload.oom_fallback import OomFallback, OutOfMemory, Step, Strategy, is_out_of_memory
from bench.memory.full_device import prepare, sweep
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.families.flux1.service import FluxService
from modules.pipeline.generate import GenerateStage
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest

FULL = "CUDA out of memory. Tried to allocate 6.50 GiB."


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays() -> None:
    """Every retry collects garbage; it need not look through all that was there before."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(FULL),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        ),
        MemoryError(),
    ],
)
def test_every_spelling_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError("memory")]
)
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


DECODE = Step("decode", ("vae",), (512, 512, 1), "width")


class Ways:
    """Strategies of which only one fits, and a record of those that were run."""

    def __init__(self, fitting: str) -> None:
        self.fitting = fitting
        self.run: list[str] = []

    def strategies(self, exact: bool = False) -> list[Strategy[str]]:
        return [Strategy(way, partial(self._run, way), exact) for way in ("fast", "lean", "leanest")]

    def _run(self, way: str) -> str:
        self.run.append(way)
        if way != self.fitting:
            raise torch.OutOfMemoryError(FULL)
        return way


class Placements:
    """Models of which ``others`` can leave the device and ``own`` can be streamed, so many times."""

    def __init__(self, ways: Ways, others: int = 0, own: int = 0, helps: str = "") -> None:
        self.ways, self.others, self.own, self.helps = ways, others, own, helps
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def offload_others(self, names: Collection[str]) -> str:
        self.asked.append(("others", tuple(names)))
        self.others -= 1
        return self._changed(self.others, "model offload for text_encoder")

    def stream(self, names: Collection[str]) -> str:
        self.asked.append(("own", tuple(names)))
        self.own -= 1
        return self._changed(self.own, "block offload for vae")

    def _changed(self, left: int, change: str) -> str:
        if left < 0:
            return ""
        self.ways.fitting = self.helps or self.ways.fitting
        return change


class TestRun:
    def test_tries_the_strategies_in_order_until_one_fits(self) -> None:
        ways, fallback = Ways("lean"), OomFallback()
        assert fallback.run(DECODE, ways.strategies()) == "lean"
        assert ways.run == ["fast", "lean"] and fallback.retries == {"decode": 1}

    def test_starts_with_the_strategy_that_the_same_step_needed_last_time(self) -> None:
        ways, fallback = Ways("leanest"), OomFallback()
        for _ in range(2):
            fallback.run(DECODE, ways.strategies())
        assert ways.run == ["fast", "lean", "leanest", "leanest"]

    @pytest.mark.parametrize(
        "other", [replace(DECODE, name="denoise"), replace(DECODE, size=(256, 256, 1)), replace(DECODE, models=("b",))]
    )
    def test_another_step_size_or_model_starts_with_the_first_strategy(self, other: Step) -> None:
        fallback = OomFallback()
        fallback.run(DECODE, Ways("lean").strategies())
        assert fallback.run(other, Ways("fast").strategies()) == "fast"

    def test_the_other_models_leave_the_device_before_a_strategy_that_changes_pixels(self) -> None:
        ways = Ways("none")
        placements = Placements(ways, others=1, helps="fast")
        assert OomFallback(placements).run(DECODE, ways.strategies()) == "fast"
        assert ways.run == ["fast", "fast"] and placements.asked == [("others", ("vae",))]

    def test_an_exact_strategy_is_tried_before_any_model_leaves(self) -> None:
        ways = Ways("lean")
        placements = Placements(ways, others=1)
        assert OomFallback(placements).run(DECODE, ways.strategies(exact=True)) == "lean"
        assert not placements.asked

    def test_the_models_of_the_step_are_streamed_last_and_the_first_strategy_is_tried_again(self) -> None:
        ways = Ways("none")
        placements = Placements(ways, own=1, helps="fast")
        fallback = OomFallback(placements)
        assert fallback.run(DECODE, ways.strategies()) == "fast"
        assert ways.run == ["fast", "lean", "leanest", "fast"] and placements.asked[-1] == ("own", ("vae",))
        fallback.run(DECODE, ways.strategies())
        assert ways.run[4:] == ["fast"]

    def test_forgets_what_the_step_needed_before_its_models_were_streamed(self) -> None:
        ways = Ways("leanest")
        placements = Placements(ways, own=1, helps="fast")
        fallback = OomFallback(placements)
        fallback.run(DECODE, ways.strategies())  # learned: the last one
        ways.fitting = "none"
        assert fallback.run(DECODE, ways.strategies()) == "fast"
        fallback.run(DECODE, ways.strategies())
        assert ways.run == ["fast", "lean", "leanest", "leanest", "fast", "fast"]

    def test_what_another_step_has_streamed_does_not_change_the_strategy_of_this_one(self) -> None:
        ways, other = Ways("lean"), Ways("none")
        placements = Placements(other, own=1, helps="fast")
        fallback = OomFallback(placements)
        fallback.run(DECODE, ways.strategies())
        fallback.run(replace(DECODE, name="denoise"), other.strategies())
        fallback.run(DECODE, ways.strategies())
        assert ways.run == ["fast", "lean", "lean"]

    def test_at_the_end_says_what_was_tried_and_what_to_lower(self) -> None:
        ways = Ways("none")
        tried = "fast; model offload for text_encoder; lean; leanest; block offload for vae"
        with pytest.raises(OutOfMemory, match=rf"^width: .* 'decode' \(tried: {tried}\); lower width$"):
            OomFallback(Placements(ways, others=1, own=2)).run(DECODE, ways.strategies())
        assert ways.run == ["fast"] + ["fast", "lean", "leanest"] * 3

    @pytest.mark.parametrize(
        ("message", "missing"),
        [
            (
                "Tried to allocate 6.50 GiB. GPU 0 has a total capacity of 8.00 GiB of which 2.50 GiB is free.",
                "4.3 GB of the device's memory are missing",
            ),
            (
                "Tried to allocate 4000000 bytes. The emulated device has a total capacity of 9 bytes of which 0 "
                "bytes are free.",
                "4.0 MB of .* are missing",
            ),
            ("CUBLAS_STATUS_ALLOC_FAILED", "memory is too small"),
        ],
    )
    def test_says_how_much_was_missing_where_that_is_known(self, message: str, missing: str) -> None:
        def full() -> str:
            raise torch.OutOfMemoryError(message)

        with pytest.raises(OutOfMemory, match=rf"^width: {missing}|^width: the device's {missing}"):
            OomFallback().run(DECODE, [Strategy("fast", full)])

    def test_other_errors_go_up_unchanged(self) -> None:
        def broken() -> str:
            raise RuntimeError("CUDA error: device-side assert triggered")

        with pytest.raises(RuntimeError, match="device-side assert"):
            OomFallback().run(DECODE, [Strategy("fast", broken), Strategy("lean", lambda: "never")])

    def test_a_cancel_goes_up_unchanged(self) -> None:
        def canceled() -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            OomFallback().run(DECODE, [Strategy("fast", canceled), Strategy("lean", lambda: "never")])

    def test_lets_go_of_the_tensors_of_the_failed_try_before_the_next(self) -> None:
        alive: list[int] = []
        held: list[Any] = []

        def greedy() -> str:
            import weakref

            tensor = torch.zeros(10)
            held.append(weakref.ref(tensor.untyped_storage()))
            raise torch.OutOfMemoryError(FULL)

        def lean() -> str:
            alive.append(sum(ref() is not None for ref in held))
            return "done"

        OomFallback().run(DECODE, [Strategy("fast", greedy), Strategy("lean", lean)])
        assert alive == [0]


class FullOnce(TorchDispatchMode):
    """The device is full at the n-th operation, once."""

    def __init__(self, operation: int) -> None:
        super().__init__()
        self.left = operation

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError(FULL)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def flux(service: Service) -> Iterator[FluxService]:
    stage = service.pipeline.stages[0]
    assert isinstance(stage, GenerateStage)
    service.fallback.learned.clear()
    service.fallback.retries.clear()
    yield stage.service
    service.fallback.learned.clear()
    service.fallback.retries.clear()


@contextmanager
def full_at(owner: object, method: str, monkeypatch: pytest.MonkeyPatch, operation: int) -> Iterator[None]:
    """Inside of this, the first call of the method finds the device full at its n-th operation."""
    plain, calls = getattr(owner, method), [0]

    def once(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            return plain(*args, **kwargs)
        with FullOnce(operation):
            return plain(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, once)
        yield


def source() -> Image.Image:
    y, x = np.mgrid[0:256, 0:256]
    return Image.fromarray(np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8))


DRAWING = DenoiseRequest(prompts=(PROMPT, PROMPT), seeds=(3, 4), width=128, height=128, steps=3, guidance=3.5)
PROMISED = {"decode": 25, "encode_image": 20}
"""dB by which an autoencoder in tiles may differ: they blend over their borders, and what it reads is redrawn, which
adds to it."""
REDRAWING = replace(DRAWING, width=256, height=256, images=(source(), source()), strength=0.7)


def difference(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> np.ndarray:
    return np.abs(np.stack([np.asarray(x).astype(int) - np.asarray(y) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize(
    ("step", "operation"), [("encode", 30), ("encode", 100), ("denoise", 1), ("denoise", 40), ("denoise", 700)]
)
def test_encoding_and_denoising_survive_with_the_same_pictures(
    flux: FluxService, monkeypatch: pytest.MonkeyPatch, step: str, operation: int
) -> None:
    plain = flux.generate(DRAWING, Monitor(Timeline()))
    flux._prompt_cache.clear()
    with full_at(flux, step, monkeypatch, operation):
        rescued = flux.generate(DRAWING, Monitor(Timeline()))
    assert flux.fallback.retries == {step: 1}
    assert difference(plain, rescued).max() <= (1 if step == "denoise" else 0)


@pytest.mark.parametrize(
    ("step", "method", "operation"), [("decode", "decode", 30), ("encode_image", "encode_images", 30)]
)
def test_the_autoencoder_survives_in_tiles(
    flux: FluxService, monkeypatch: pytest.MonkeyPatch, step: str, method: str, operation: int
) -> None:
    plain = flux.generate(REDRAWING, Monitor(Timeline()))
    with full_at(flux, method, monkeypatch, operation):
        rescued = flux.generate(REDRAWING, Monitor(Timeline()))
    assert flux.fallback.retries == {step: 1}
    assert 10 * np.log10(255**2 / np.square(difference(plain, rescued)).mean()) > PROMISED[step]
    with flux.models.on_device("vae") as (vae,):
        assert not vae.use_tiling


def test_after_it_the_plain_way_is_the_same_as_ever(flux: FluxService, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = flux.generate(DRAWING, Monitor(Timeline()))
    with full_at(flux, "denoise", monkeypatch, 50):
        flux.generate(DRAWING, Monitor(Timeline()))
    flux.fallback.learned.clear()
    assert difference(plain, flux.generate(DRAWING, Monitor(Timeline()))).max() == 0


def test_detection_and_upscaling_survive_and_are_counted(
    service: Service, flux: FluxService, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modules.detection.yolo as detail
    import modules.upscaling.service as upscale

    request = ImageRequest(
        prompt=PROMPT,
        width=192,
        height=192,
        seed=5,
        num_inference_steps=2,
        adetailer=(AdetailerUnit(),),
        scale=1.5,
    )
    plain = [picture.image for picture in service.pipeline.run(request).pictures]
    with full_at(detail.Detector, "detect", monkeypatch, 20), full_at(upscale.Upscaler, "upscale", monkeypatch, 20):
        rescued = [picture.image for picture in service.pipeline.run(request).pictures]
    assert flux.fallback.retries == {"detect": 1, "upscale": 1}
    assert difference(plain, rescued).max() <= 1


def test_wherever_the_device_is_full_the_prediction_finishes() -> None:
    calls, found = sweep(*prepare(""), stride=1200)
    assert calls > 1000 and len(found) == -(-calls // 1200)
    for one in found:
        if one.step in PROMISED:
            assert one.psnr > PROMISED[one.step], one
        elif one.step == "denoise":
            assert one.difference <= 1, one
        else:
            assert one.difference <= (1 if one.step in ("detect", "upscale") else 0), one
