"""The measurements of ``python -m bench.gpu``, one function each: from a :class:`Ground` to rows of the table."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import FluxPipeline

from backend.checkpoints.page_cache import is_cached
from backend.memory_management import MemoryPlanError
from backend.offload.oom_fallback import OutOfMemory
from bench.gpu.denoising import PROMPT, RATE, TOKENS, graphs, steps
from bench.gpu.ground import Ground, Row
from bench.gpu.timing import attempted, dtype_of, free, median_seconds, seconds, served
from modules.app.service import Service
from modules.flux_memory_optimizer import ATTENTION_BACKENDS, fastest_attention

logger = logging.getLogger(__name__)

BUS = 55e9
"""Bytes a second over PCIe 5 x16."""
MAX_SIDE = 1440
"""Of a picture that no second pass redraws."""


def copies(ground: Ground) -> Iterator[Row]:
    """Bandwidth between host and device, pageable and pinned, and how much of a copy hides behind computation."""
    size = 2**30 if ground.on_gpu else 2**24
    host, there = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8, device=ground.device)

    def rate(run: Callable[[], object]) -> float:
        run()
        return size / median_seconds(ground, run) / 1e9

    yield Row("copies", "host to device, pageable", rate(lambda: there.copy_(host)), "GB/s")
    if not ground.on_gpu:
        return
    pinned = host.pin_memory()
    up = rate(lambda: there.copy_(pinned, non_blocking=True))
    yield Row("copies", "host to device, pinned", up, "GB/s", BUS / 1e9)
    down = rate(lambda: pinned.copy_(there, non_blocking=True))
    yield Row("copies", "device to host, pinned", down, "GB/s", BUS / 1e9)
    matrix = torch.randn(8192, 8192, device=ground.device, dtype=torch.bfloat16)
    side = torch.cuda.Stream()

    def compute() -> None:
        for _ in range(16):
            matrix @ matrix

    def both() -> None:
        with torch.cuda.stream(side):
            there.copy_(pinned, non_blocking=True)
        compute()

    both()
    copied, alone, together = size / up / 1e9, median_seconds(ground, compute), median_seconds(ground, both)
    hidden = (alone + copied - together) / min(alone, copied)
    yield Row("copies", "of a copy hidden behind computation", hidden, "share", 1.0)
    yield Row("copies", "bf16 products of 8192 x 8192", 16 * 2 * 8192**3 / alone / 1e12, "TFLOP/s", RATE / 1e12)


def attention(ground: Ground) -> Iterator[Row]:
    """Which attention kernel is the fastest at the size of a picture."""
    config = json.loads((ground.folder / "transformer" / "config.json").read_text())
    shape = (1, TOKENS + (ground.side // 16) ** 2, config["num_attention_heads"], config["attention_head_dim"])
    backends = ATTENTION_BACKENDS if ground.on_gpu else ("_native_math", "native")
    best, words = fastest_attention(backends, shape, ground.device, dtype_of(ground))
    for part in words.partition("(")[2].rstrip(")").split("; "):
        kernel, _, rest = part.partition(" ")
        measured = re.match(r"([\d.]+) ms", rest)
        note = "the fastest" if kernel == best else "" if measured else part
        yield Row("attention", kernel.rstrip(":"), float(measured[1]) if measured else math.nan, "ms", note=note)


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


def loading(ground: Ground) -> Iterator[Row]:
    """All models from the page cache, and from the disk where the weights are on one, to where they live, beside stock
    diffusers, which loads the pipeline's only."""
    size = sum(file.stat().st_size for file in ground.folder.rglob("*.safetensors"))
    limit = size / BUS if ground.on_gpu else None

    def ours() -> str:
        with served(ground) as service:
            return f"{sum(service.models.stats().load_seconds.values()):.1f} s of it reading"

    def stock() -> str:
        FluxPipeline.from_pretrained(
            ground.folder, torch_dtype=dtype_of(ground), local_files_only=True, trust_remote_code=False
        ).to(ground.device)
        return ""

    for state in ("page cache", "disk"):
        if state == "disk" and not cached_share(ground.folder):
            return  # though just read: the files lie in memory, or the file system does not tell
        for name, run in (("ours", ours), ("stock diffusers", stock)):
            free(ground)
            if state == "disk":
                drop_from_cache(ground.folder)
            cached = cached_share(ground.folder)
            notes: list[str] = []
            taken = seconds(ground, lambda run=run, notes=notes: notes.append(run()))  # type: ignore[misc]
            note = "; ".join([f"{cached:.0%} cached before", *filter(None, notes)])
            yield Row("loading", f"{name}, from {state}", taken, "s", limit, note)


def caps(ground: Ground, weight_precision: str = "auto") -> Iterator[Row]:
    """On cards of other sizes: the peak that the plan predicts beside the measured one, the seconds, and what moves
    when all is warm. Nothing is compiled, which would take longer than the rest."""
    for cap in ground.caps:
        label = f"{cap / 1e9:.3g} GB, {weight_precision}"
        yield from attempted(ground, "caps", label, partial(on_card, ground, cap, weight_precision, label))


def on_card(ground: Ground, cap: int, weight_precision: str, label: str) -> Iterator[Row]:
    metrics: dict[str, float] = {}
    try:
        with served(ground, emulate_vram=str(cap), weight_precision=weight_precision, compile="off") as service:
            plan = service.runtime.plan
            for count in (min(2, ground.steps), ground.steps):
                metrics = {}
                inputs = {"prompt": PROMPT, "seed": 1, "num_inference_steps": count}
                service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
    except MemoryPlanError as error:
        yield Row("caps", f"{label}: bytes missing", error.missing_bytes, "B", note=str(error))
        return
    logger.info("caps: %s: %s", label, metrics)
    peak = max(value for name, value in metrics.items() if name.endswith(".peak_bytes"))
    predicted = plan.predicted_peak_bytes - plan.reserve_bytes
    taken = sum(value for name, value in metrics.items() if name.endswith(".seconds") and name.count(".") == 1)
    kinds = (
        ", ".join(f"{name} {p.dtype} {p.kind}" for name, p in plan.placements.items() if p.kind != "resident")
        or "all resident"
    )
    yield Row("caps", f"{label}: peak", peak / 1e9, "GB", predicted / 1e9, f"the limit is the prediction; {kinds}")
    note = "the limit is the prediction, which counts compiled blocks and a repainted face"
    yield Row("caps", f"{label}: warm prediction", taken, "s", plan.predicted_seconds, note)
    yield Row("caps", f"{label}: moved when warm", metrics["model_bytes_moved"] / 1e9, "GB")


def picture(ground: Ground) -> Iterator[Row]:
    """A picture by the embedded models with every stage, eager, and on a GPU as the defaults compile it and warm it
    up."""
    for name, setting in (("eager", "off"), ("compiled", "auto"))[: 1 + ground.on_gpu]:
        yield from attempted(ground, "picture", name, partial(whole_picture, ground, name, setting))


def whole_picture(ground: Ground, name: str, setting: str) -> Iterator[Row]:
    """The seconds of the first time and of another; those of every stage are in the log. The picture is written where
    it can be looked at."""
    warm_up = ground.on_gpu and setting != "off"
    with served(replace(ground, model="embedded"), compile=setting, warm_up=warm_up) as service:
        inputs = {
            "prompt": PROMPT,
            "seed": 1,
            "num_inference_steps": ground.steps,
            "enable_hr": "hires" in service.extensions.enabled,
        }
        note = f"stages: {', '.join(stage.name for stage in service.pipeline.stages)}"
        for time_of in ("the first time", "again")[: ground.runs]:
            metrics: dict[str, float] = {}
            begin = time.perf_counter()
            [file] = service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None)
            taken = time.perf_counter() - begin
            logger.info("picture, %s, %s: %s", name, time_of, metrics)
            if ground.pictures:
                shutil.copy(file, ground.pictures / f"{name}{file.suffix}")
            yield Row("picture", f"{name}, {time_of}", taken, "s", None, note)


def more_than_planned(ground: Ground, service: Service, scale: int) -> dict[str, object]:
    """Inputs for pictures larger than the plan counts: by Hires fix and the upscaler, where these are there."""
    if "hires" in (stage.name for stage in service.pipeline.stages):
        return {"aspect_ratio": "16:9", "enable_hr": True, "hr_scale": 2, "scale": scale}
    side = min(2 * ground.side, MAX_SIDE)
    return {"aspect_ratio": "custom", "width": side, "height": side}


def pictures_on(ground: Ground, cap: int, outputs: int, scale: int, metrics: dict[str, float]) -> int:
    """How many pictures a card of ``cap`` bytes makes of a request that it was not planned for."""
    with served(ground, emulate_vram=str(cap), weight_precision="fp8", compile="off") as service:
        more = more_than_planned(ground, service, scale)
        inputs = {"prompt": PROMPT, "seed": 1, "num_inference_steps": 2, "num_outputs": outputs, **more}
        return len(service.predict(inputs, metrics.__setitem__, lambda stage, done, total: None))


def fallback(ground: Ground, outputs: int = 4, scale: int = 2) -> Iterator[Row]:
    """A request for more than was planned for, on the smallest card that holds the models: it must end with its
    pictures."""
    for cap in sorted(ground.caps):
        metrics: dict[str, float] = {}
        free(ground)
        try:
            made = pictures_on(ground, cap, outputs, scale, metrics)
        except (MemoryPlanError, OutOfMemory) as error:  # for the models, or for the request in every way there is
            logger.info("fallback: %.3g GB are too few: %s", cap / 1e9, error)
            continue
        retries = {
            name.partition(".")[2]: value
            for name, value in metrics.items()
            if name.startswith("out_of_memory_retries.") and value
        }
        note = f"retried: {retries or 'nothing'}"
        yield Row("fallback", f"pictures on {cap / 1e9:.3g} GB", made, "pictures", outputs, note)
        return
    raise RuntimeError("no card is large enough")


MEASURES: Mapping[str, Callable[[Ground], Iterator[Row]]] = MappingProxyType(
    {
        "steps": steps,
        "caps": caps,
        "attention": attention,
        "copies": copies,
        "picture": picture,
        "fallback": fallback,
        "loading": loading,
        "graphs": graphs,
    }
)
"""What matters most comes first: where the time ends, the rest is left out."""
