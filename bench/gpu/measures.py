"""The measurements of ``python -m bench.gpu``, one function each: from a :class:`Ground` to rows of the table."""

from __future__ import annotations

import gc
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import FluxPipeline

from backend.checkpoints.page_cache import is_cached
from backend.memory_management import MemoryPlanError
from backend.offload.oom_fallback import OutOfMemory
from bench.gpu.ground import Ground, Row
from modules.app.service import Service, start
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.picture_latents import PictureLatents
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.extension_optimizer import optional_features
from modules.families.flux1.service import FluxService
from modules.families.registry import known_models
from modules.flux_memory_optimizer import ATTENTION_BACKENDS, fastest_attention

PROMPT = "two people: a man with a beard, a woman with red hair"
BUS = 55e9
"""Bytes a second over PCIe 5 x16."""
RATE = 790e12
"""Floating point operations a second that an H100 sustains in bfloat16, at best."""
ALONE: Mapping[str, Any] = MappingProxyType({"disabled_extensions": tuple(optional_features())})
"""Settings for what only needs the models of the family."""
MAX_SIDE = 1440
"""Of a picture that no second pass redraws."""


def synchronize(ground: Ground) -> None:
    if ground.on_gpu:
        torch.cuda.synchronize()


def seconds(ground: Ground, run: Callable[[], object]) -> float:
    synchronize(ground)
    begin = time.perf_counter()
    run()
    synchronize(ground)
    return time.perf_counter() - begin


def median_seconds(ground: Ground, run: Callable[[], object]) -> float:
    """After one run that does not count."""
    run()
    return statistics.median(seconds(ground, run) for _ in range(ground.runs))


def free(ground: Ground) -> None:
    """Gives back what nobody uses any more."""
    gc.collect()
    if ground.on_gpu:
        torch.cuda.empty_cache()


@contextmanager
def served(ground: Ground, **changes: Any) -> Iterator[Service]:
    """The package, started as a server starts it; its memory is free again afterwards."""
    service = start(ground.settings(**changes))
    try:
        yield service
    finally:
        del service
        free(ground)
        if ground.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)


def flux_of(service: Service) -> FluxService:
    return next(stage.service for stage in service.pipeline.stages if stage.name == "generate")  # type: ignore[attr-defined, no-any-return]


def copies(ground: Ground) -> list[Row]:
    """Bandwidth between host and device, pageable and pinned, and how much of a copy hides behind computation."""
    size = 2**30 if ground.on_gpu else 2**24
    host, there = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8, device=ground.device)
    rows = [
        Row(
            "copies", "host to device, pageable", size / median_seconds(ground, lambda: there.copy_(host)) / 1e9, "GB/s"
        )
    ]
    if not ground.on_gpu:
        return rows
    pinned = host.pin_memory()
    up, down = (
        median_seconds(ground, run)
        for run in (lambda: there.copy_(pinned, non_blocking=True), lambda: pinned.copy_(there, non_blocking=True))
    )
    rows.append(Row("copies", "host to device, pinned", size / up / 1e9, "GB/s", BUS / 1e9))
    rows.append(Row("copies", "device to host, pinned", size / down / 1e9, "GB/s", BUS / 1e9))
    matrix = torch.randn(8192, 8192, device=ground.device, dtype=torch.bfloat16)
    side = torch.cuda.Stream()

    def compute() -> None:
        for _ in range(16):
            matrix @ matrix

    def both() -> None:
        with torch.cuda.stream(side):
            there.copy_(pinned, non_blocking=True)
        compute()

    alone, together = median_seconds(ground, compute), median_seconds(ground, both)
    rows.append(
        Row("copies", "of a copy hidden behind computation", (alone + up - together) / min(alone, up), "share", 1.0)
    )
    return rows


def attention(ground: Ground) -> list[Row]:
    """Which attention kernel is the fastest at the size of a picture."""
    with served(ground, **ALONE) as service, service.models.on_device("transformer") as (transformer,):
        config: Any = transformer.config
        tokens = service.profile.tokens + (ground.side // service.profile.latent_factor // 2) ** 2
        shape = (1, tokens, config.num_attention_heads, config.attention_head_dim)
        dtype = next(transformer.parameters()).dtype
    best, words = fastest_attention(
        ATTENTION_BACKENDS if ground.on_gpu else ("_native_math", "native"), shape, ground.device, dtype
    )
    rows = []
    for part in words.partition("(")[2].rstrip(")").split("; "):
        kernel, _, rest = part.partition(" ")
        measured = re.match(r"([\d.]+) ms", rest)
        note = "the fastest" if kernel == best else "" if measured else part
        rows.append(Row("attention", kernel.rstrip(":"), float(measured[1]) if measured else math.nan, "ms", note=note))
    return rows


def cached_share(folder: Path) -> float:
    """Of the weights' files, how many are in the page cache."""
    found = []
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as opened:
            found.append(is_cached(opened.fileno(), 0, file.stat().st_size))
    return sum(found) / max(1, len(found))


def drop_from_cache(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(ground: Ground) -> list[Row]:
    """All models from the disk and from the page cache to where they live, beside stock diffusers, which loads the
    pipeline's only."""
    size = sum(file.stat().st_size for file in ground.folder.rglob("*.safetensors"))
    rows = []

    def ours() -> str:
        with served(ground) as service:
            return f"{sum(service.models.stats().load_seconds.values()):.1f} s of it reading"

    def stock() -> str:
        dtype = torch.bfloat16 if ground.on_gpu else torch.float32
        FluxPipeline.from_pretrained(
            ground.folder, torch_dtype=dtype, local_files_only=True, trust_remote_code=False
        ).to(ground.device)
        return ""

    for state in ("disk", "page cache"):
        for name, run in (("ours", ours), ("stock diffusers", stock)):
            if state == "disk":
                drop_from_cache(ground.folder)
            cached = cached_share(ground.folder)
            notes: list[str] = []
            taken = seconds(ground, lambda run=run, notes=notes: notes.append(run()))  # type: ignore[misc]
            note = "; ".join([f"{cached:.0%} cached before", *filter(None, notes)])
            rows.append(
                Row("loading", f"{name}, from {state}", taken, "s", size / BUS if ground.on_gpu else None, note)
            )
            free(ground)
    return rows


def drawing_of(ground: Ground, **changes: Any) -> DenoiseRequest:
    return replace(DenoiseRequest((PROMPT,), (0,), ground.side, ground.side, ground.steps, 3.5), **changes)


def floor_seconds(ground: Ground) -> float | None:
    """What the denoising takes at least: the operations of FLUX.1-dev over the rate of an H100."""
    if not ground.on_gpu:
        return None
    work = known_models()["flux-dev"].costs["denoise"].work(512 + (ground.side // 16) ** 2)
    return work * ground.steps / RATE


def our_steps(ground: Ground, name: str, **changes: Any) -> list[Row]:
    """The denoising of one picture by our service."""
    go_fast = changes.pop("go_fast", False)
    with served(ground, **ALONE, **changes) as service, torch.inference_mode(), service.runtime.activate():
        flux, drawing = flux_of(service), drawing_of(ground, go_fast=go_fast)
        embeddings = flux.encode([PROMPT])
        first = seconds(ground, lambda: flux.denoise(drawing, embeddings, PictureLatents(), None))
        taken = median_seconds(ground, lambda: flux.denoise(drawing, embeddings, PictureLatents(), None))
        return [Row("steps", name, taken, "s", floor_seconds(ground), f"the first time {first:.1f} s")]


def stock_steps(ground: Ground) -> list[Row]:
    """The same by diffusers' pipeline, as users write it."""
    dtype = torch.bfloat16 if ground.on_gpu else torch.float32
    pipeline: Any = FluxPipeline.from_pretrained(
        ground.folder,
        torch_dtype=dtype,
        text_encoder=None,
        text_encoder_2=None,
        vae=None,
        local_files_only=True,
        trust_remote_code=False,
    )
    pipeline.to(ground.device)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.transformer.config
    embeddings = PromptEmbeddings(
        torch.zeros(1, 512 if ground.on_gpu else 40, config.joint_attention_dim, dtype=dtype, device=ground.device),
        torch.zeros(1, config.pooled_projection_dim, dtype=dtype, device=ground.device),
    )
    pipeline.vae_scale_factor = 8 if ground.on_gpu else 16

    def run() -> None:
        pipeline(
            prompt_embeds=embeddings.sequence,
            pooled_prompt_embeds=embeddings.pooled,
            width=ground.side,
            height=ground.side,
            num_inference_steps=ground.steps,
            output_type="latent",
        )

    return [Row("steps", "stock diffusers", median_seconds(ground, run), "s", floor_seconds(ground))]


TECHNIQUES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "bf16, eager": {"weight_precision": "bf16", "compile": "off"},
        "bf16, compiled blocks": {"weight_precision": "bf16", "compile": "on"},
        "bf16, one graph": {"weight_precision": "bf16", "compile": "whole"},
        "fp8, compiled blocks": {"weight_precision": "fp8", "compile": "on"},
        "fp8, compiled blocks, go_fast": {"weight_precision": "fp8", "compile": "on", "go_fast": True},
        "bf16, eager, go_fast": {"weight_precision": "bf16", "compile": "off", "go_fast": True},
    }
)
"""The settings of each row. How many steps ``go_fast`` skips says nothing on random weights."""


def steps(ground: Ground) -> list[Row]:
    """Stock diffusers, and every technique by our service, in one run. On a CPU only those that compile nothing."""
    rows = stock_steps(ground)
    for name, settings in TECHNIQUES.items():
        free(ground)
        if ground.on_gpu or settings["compile"] == "off":
            rows += our_steps(ground, f"ours, {name}", **settings)
    return rows


def decode(ground: Ground) -> list[Row]:
    """The autoencoder's decoder on one picture, as it is and compiled."""
    rows = []
    for name, setting in (("eager", "off"), ("compiled", "on")):
        with served(ground, compile=setting, **ALONE) as service, torch.inference_mode(), service.runtime.activate():
            flux, rows_of_latents = flux_of(service), ground.side // service.profile.latent_factor
            latents = torch.zeros(1, 16, rows_of_latents, rows_of_latents)
            packed = flux.pack(latents).to(ground.device, flux.dtype)
            taken = median_seconds(ground, partial(flux.decode, packed, ground.side, ground.side))
            rows.append(Row("decode", name, taken, "s", None, "" if ground.on_gpu else "never compiled on a CPU"))
    return rows


def caps(ground: Ground, qualities: Sequence[str] = ("auto",)) -> list[Row]:
    """On cards of other sizes: the peak that the plan predicts beside the measured one, the seconds, and what moves
    when all is warm."""
    rows: list[Row] = []
    for cap in ground.caps:
        for weight_precision in qualities:
            label = f"{cap / 1e9:.3g} GB, {weight_precision}"
            try:
                with served(ground, emulate_vram=str(cap), weight_precision=weight_precision) as service:
                    rows += on_card(ground, service, label)
            except MemoryPlanError as error:
                rows.append(Row("caps", f"{label}: bytes missing", error.missing_bytes, "B", note=str(error)))
    return rows


def on_card(ground: Ground, service: Service, label: str) -> list[Row]:
    plan = service.runtime.plan
    metrics: dict[str, float] = {}
    inputs = {"prompt": PROMPT, "seed": 1, "num_inference_steps": ground.steps}
    for _ in range(2):
        metrics = {}
        service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
    peak = max(value for name, value in metrics.items() if name.endswith(".peak_bytes"))
    predicted = plan.predicted_peak_bytes - plan.reserve_bytes
    taken = sum(value for name, value in metrics.items() if name.endswith(".seconds") and name.count(".") == 1)
    kinds = (
        ", ".join(f"{name} {p.dtype} {p.kind}" for name, p in plan.placements.items() if p.kind != "resident")
        or "all resident"
    )
    return [
        Row("caps", f"{label}: peak", peak / 1e9, "GB", predicted / 1e9, f"the limit is the prediction; {kinds}"),
        Row("caps", f"{label}: warm prediction", taken, "s", plan.predicted_seconds, "the limit is the prediction"),
        Row("caps", f"{label}: moved when warm", metrics["model_bytes_moved"] / 1e9, "GB"),
    ]


def more_than_planned(ground: Ground, service: Service, scale: int) -> dict[str, object]:
    """Inputs for pictures larger than the plan counts: by Hires fix and the upscaler, where these are there."""
    if "hires" in (stage.name for stage in service.pipeline.stages):
        return {"aspect_ratio": "16:9", "enable_hr": True, "hr_scale": 2, "scale": scale}
    side = min(2 * ground.side, MAX_SIDE)
    return {"aspect_ratio": "custom", "width": side, "height": side}


def fallback(ground: Ground, outputs: int = 4, scale: int = 2) -> list[Row]:
    """A request for more than was planned for, on the smallest card that holds the models: it must end with its
    pictures."""
    for cap in sorted(ground.caps):
        metrics: dict[str, float] = {}
        try:
            with served(ground, emulate_vram=str(cap), weight_precision="fp8") as service:
                inputs = {
                    "prompt": PROMPT,
                    "seed": 1,
                    "num_inference_steps": 2,
                    "num_outputs": outputs,
                    **more_than_planned(ground, service, scale),
                }
                files = service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
                retries = {
                    name.partition(".")[2]: value
                    for name, value in metrics.items()
                    if name.startswith("out_of_memory_retries.")
                }
                return [
                    Row(
                        "fallback",
                        f"pictures on {cap / 1e9:.3g} GB",
                        len(files),
                        "pictures",
                        outputs,
                        f"retried: {retries or 'nothing'}",
                    )
                ]
        except (MemoryPlanError, OutOfMemory):  # too small for the models, or for the request in every way there is
            continue
    raise RuntimeError("no card is large enough")


MEASURES: Mapping[str, Callable[[Ground], list[Row]]] = MappingProxyType(
    {
        "steps": steps,
        "caps": caps,
        "decode": decode,
        "attention": attention,
        "copies": copies,
        "fallback": fallback,
        "loading": loading,
    }
)
"""What matters most comes first: where the time ends, the rest is left out."""
