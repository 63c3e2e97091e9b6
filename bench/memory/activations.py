"""Measures the activations of every step against the plan: ``python -m bench.memory.activations [--json]``.

Every model is resident, so what a step adds to the memory of the device is its activations. Without a GPU the emulated
device counts; with one, torch's allocator does. The last column is a linear fit, from which the coefficients of the
plan are taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import cast

import numpy as np
import torch
from PIL import Image

from backend.core.settings import Settings
from backend.devices.emulated import EmulatedDevice
from backend.devices.runtime import DeviceRuntime
from backend.devices.torchvision_ops import ensure_torchvision_operators
from backend.planning.upscale_tiles import CONTEXT
from modules.app.service import Service, start

ensure_torchvision_operators()  # before anything imports diffusers

from modules.detection.yolo import Detector  # noqa: E402
from modules.diffusion.base import DiffusionService  # noqa: E402
from modules.diffusion.denoise_request import DenoiseRequest  # noqa: E402
from modules.diffusion.picture_latents import PictureLatents  # noqa: E402
from modules.diffusion.prompt_cache import PromptEmbeddings  # noqa: E402
from modules.pipeline.generate import GenerateStage  # noqa: E402
from modules.upscaling.tiled import Upscaler, UpscalerNetwork  # noqa: E402

EMULATED = "2GB"


@dataclass(frozen=True)
class Measurement:
    """``x`` is what the step's curve counts (tokens, pixels, pictures), of each of ``batch`` pictures."""

    step: str
    x: int
    batch: int
    measured: int
    predicted: int

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def added_bytes(runtime: DeviceRuntime, run: Callable[[], object]) -> int:
    """What the device held at the worst moment of ``run``, beyond what it held before."""
    if isinstance(runtime.transfers, EmulatedDevice):
        before = runtime.transfers.allocated_bytes
        runtime.transfers.reset_peak()
        run()
        return runtime.transfers.peak_bytes - before
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def picture(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8))


def measurements(service: Service, sides: tuple[int, ...]) -> Iterator[Measurement]:
    """Every step of a prediction at every side in pixels, with one picture and with three where a batch goes
    together."""
    flux = cast(GenerateStage, service.pipeline.stages[0]).service
    sizes, models = service.spec, service.models

    def measure(step: str, x: int, batch: int, run: Callable[[], object]) -> Measurement:
        run()  # what is kept from a first run (a prompt's embeddings, a kernel's plan) is not an activation
        with torch.inference_mode():
            added = added_bytes(service.runtime, run)
        return Measurement(step, x, batch, added, int(batch * sizes.costs[step].memory(x)))

    words = (f"prompt {index}" for index in range(1_000_000))
    yield measure("encode", sizes.text_tokens, 1, lambda: flux.encode([next(words)]))
    for batch in (1, 3):
        for side in sides:
            tokens = sizes.text_tokens + (side // sizes.token_pixels) ** 2
            yield measure("denoise", tokens, batch, denoising(flux, side, batch))
    for side in sides:
        yield measure("encode_image", side * side, 1, partial(flux.encode_images, [picture(side)]))
    for side in sides:
        rows = side // flux.profile.latent_factor
        packed = torch.zeros(1, rows * rows // 4, 64, dtype=flux.dtype, device=models.device)
        yield measure("decode", side * side, 1, partial(flux.decode, packed, side, side))
    for count in (1, 2, 4):
        with models.on_device("face_detector") as (network,):
            detector = Detector(network)
            pictures = [picture(256)] * count
            yield measure("detect", count, 1, partial(detector.detect, pictures, 0.5))
    for side in (64, 96, 128, 192):
        with models.on_device("upscaler") as (network,):
            upscaler = Upscaler(cast(UpscalerNetwork, network), side)
            padded = torch.tensor(np.asarray(picture(side + 2 * CONTEXT)))
            yield measure(
                "upscale",
                padded.shape[0] ** 2,
                1,
                partial(upscaler.upscale_tile, padded),
            )


def denoising(flux: DiffusionService, side: int, batch: int) -> Callable[[], object]:
    drawing = DenoiseRequest(("",) * batch, tuple(range(batch)), side, side, 2, 3.5)
    one = flux.encode([""])
    embeddings = PromptEmbeddings.concatenate([one] * batch)
    return lambda: flux.denoise(drawing, embeddings, PictureLatents(), None)


def line(points: list[Measurement]) -> str:
    """``fixed + linear * x`` through the measurements of one picture each, by least squares of the relative error."""
    if len({point.x for point in points}) < 2:
        return f"{points[0].measured / points[0].x:.4g} x"
    x, y = (
        np.array([getattr(point, name) / (point.batch if name == "measured" else 1) for point in points])
        for name in ("x", "measured")
    )
    (fixed, linear), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(points)), rcond=None)
    return f"{fixed:.4g} + {linear:.4g} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 192, 256, 384])
    arguments = parser.parse_args()
    settings = replace(Settings(), log_level="WARNING", warm_up=False)
    emulated = settings if torch.cuda.is_available() else replace(settings, model="embedded", emulate_vram=EMULATED)
    service = start(emulated)
    computing: AbstractContextManager[object] = service.runtime.activate()
    with computing, torch.inference_mode():
        found = list(measurements(service, tuple(arguments.sides)))
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
        return
    print(f"{'step':<13} {'x':>8} {'batch':>5} {'measured':>12} {'predicted':>12} {'ratio':>6}")
    for step, points in groupby(found, key=lambda one: one.step):
        listed = list(points)
        for one in listed:
            print(f"{step:<13} {one.x:>8} {one.batch:>5} {one.measured:>12} {one.predicted:>12} {one.ratio:>6.2f}")
        print(f"{'':<13} fitted: {line(listed)}")


if __name__ == "__main__":
    main()
