"""A full memory is survived in every stage: the same pictures, a leaner way, remembered; every other error goes up
unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import PROMPT
from torch.utils._python_dispatch import TorchDispatchMode

from backend.core.timeline import Timeline
from backend.offload.oom_fallback import OomFallback, OutOfMemory, Strategy, is_out_of_memory
from bench.memory.full_device import prepare, sweep
from modules.app.service import Service
from modules.diffusion.denoise_request import DenoiseRequest
from modules.families.flux1.service import FluxService
from modules.pipeline.generate import GenerateStage
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest

FULL = "CUDA out of memory. Tried to allocate 6.50 GiB."


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


class TestLadder:
    @staticmethod
    def strategies(calls: list[str], fitting: str) -> list[Strategy[str]]:
        def run(way: str) -> str:
            calls.append(way)
            if way != fitting:
                raise torch.OutOfMemoryError(FULL)
            return way

        return [Strategy(way, lambda way=way: run(way)) for way in ("fast", "lean", "leanest")]

    def test_goes_down_to_the_first_rung_that_fits(self) -> None:
        calls: list[str] = []
        fallback = OomFallback()
        assert fallback.run("decode", self.strategies(calls, "lean"), "width") == "lean"
        assert calls == ["fast", "lean"] and fallback.retries == {"decode": 1}

    def test_does_not_climb_again_the_next_time(self) -> None:
        calls: list[str] = []
        fallback = OomFallback()
        for _ in range(2):
            fallback.run("decode", self.strategies(calls, "leanest"), "width")
        assert calls == ["fast", "lean", "leanest", "leanest"]

    def test_every_step_learns_for_itself(self) -> None:
        calls: list[str] = []
        fallback = OomFallback()
        fallback.run("decode", self.strategies(calls, "lean"), "width")
        assert fallback.run("denoise", self.strategies(calls, "fast"), "width") == "fast"

    def test_at_its_end_says_what_was_tried_and_what_to_lower(self) -> None:
        with pytest.raises(OutOfMemory, match=r"width: .* 'decode' \(tried: fast; lean; leanest\); lower width"):
            OomFallback().run("decode", self.strategies([], "none"), "width")

    def test_then_the_models_are_placed_leaner_as_often_as_they_can_be(self) -> None:
        calls: list[str] = []
        ways = ["transformer swapped", "transformer grouped"]
        fallback = OomFallback(lambda: ways.pop(0) if ways else "")
        with pytest.raises(
            OutOfMemory, match=r"\(tried: fast; lean; leanest; transformer swapped; transformer grouped\)"
        ):
            fallback.run("decode", self.strategies(calls, "none"), "width")
        assert calls == ["fast", "lean", "leanest"] * 3

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
            OomFallback().run("decode", [Strategy("fast", full)], "width")

    def test_other_errors_go_up_unchanged(self) -> None:
        def broken() -> str:
            raise RuntimeError("CUDA error: device-side assert triggered")

        with pytest.raises(RuntimeError, match="device-side assert"):
            OomFallback().run("decode", [Strategy("fast", broken), Strategy("lean", lambda: "never")], "width")

    def test_a_cancel_goes_up_unchanged(self) -> None:
        def canceled() -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            OomFallback().run("decode", [Strategy("fast", canceled), Strategy("lean", lambda: "never")], "width")

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

        OomFallback().run("decode", [Strategy("fast", greedy), Strategy("lean", lean)], "width")
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


DRAWING = DenoiseRequest(prompts=(PROMPT, PROMPT), seeds=(3, 4), width=256, height=256, steps=3, guidance=3.5)
PROMISED = {"decode": 25, "encode_image": 20}
"""dB by which an autoencoder in tiles may differ: they blend over their borders, and what it reads is redrawn, which
adds to it."""
REDRAWING = replace(DRAWING, images=(source(), source()), strength=0.7)


def difference(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> np.ndarray:
    return np.abs(np.stack([np.asarray(x).astype(int) - np.asarray(y) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize(
    ("step", "operation"), [("encode", 30), ("encode", 100), ("denoise", 1), ("denoise", 40), ("denoise", 700)]
)
def test_encoding_and_denoising_survive_with_the_same_pictures(
    flux: FluxService, monkeypatch: pytest.MonkeyPatch, step: str, operation: int
) -> None:
    plain = flux.generate(DRAWING, Timeline())
    flux._prompt_cache.clear()
    with full_at(flux, step, monkeypatch, operation):
        rescued = flux.generate(DRAWING, Timeline())
    assert flux.fallback.retries == {step: 1}
    assert difference(plain, rescued).max() <= (1 if step == "denoise" else 0)


@pytest.mark.parametrize(
    ("step", "method", "operation"), [("decode", "decode", 30), ("encode_image", "encode_images", 30)]
)
def test_the_autoencoder_survives_in_tiles(
    flux: FluxService, monkeypatch: pytest.MonkeyPatch, step: str, method: str, operation: int
) -> None:
    plain = flux.generate(REDRAWING, Timeline())
    with full_at(flux, method, monkeypatch, operation):
        rescued = flux.generate(REDRAWING, Timeline())
    assert flux.fallback.retries == {step: 1}
    assert 10 * np.log10(255**2 / np.square(difference(plain, rescued)).mean()) > PROMISED[step]
    with flux.models.on_device("vae") as (vae,):
        assert not vae.use_tiling


def test_after_it_the_plain_way_is_the_same_as_ever(flux: FluxService, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = flux.generate(DRAWING, Timeline())
    with full_at(flux, "denoise", monkeypatch, 50):
        flux.generate(DRAWING, Timeline())
    flux.fallback.learned.clear()
    assert difference(plain, flux.generate(DRAWING, Timeline())).max() == 0


def test_detection_and_upscaling_survive_and_are_counted(
    service: Service, flux: FluxService, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modules.detection.yolo as detail
    import modules.upscaling.service as enlarge

    request = ImageRequest(
        prompt=PROMPT,
        width=256,
        height=256,
        seed=5,
        num_outputs=2,
        num_inference_steps=3,
        adetailer=(AdetailerUnit(),),
        scale=2.0,
    )
    plain = [picture.image for picture in service.pipeline.run(request).pictures]
    with full_at(detail.Detector, "detect", monkeypatch, 20), full_at(enlarge.Upscaler, "upscale", monkeypatch, 20):
        rescued = [picture.image for picture in service.pipeline.run(request).pictures]
    assert flux.fallback.retries == {"detect": 1, "upscale": 1}
    assert difference(plain, rescued).max() <= 1


def test_wherever_the_device_is_full_the_prediction_finishes() -> None:
    calls, found = sweep(*prepare(""), stride=700)
    assert calls > 1000 and len(found) == -(-calls // 700)
    for one in found:
        if one.step in PROMISED:
            assert one.psnr > PROMISED[one.step], one
        elif one.step == "denoise":
            assert one.difference <= 1, one
        else:
            assert one.difference <= (1 if one.step in ("detect", "upscale") else 0), one
