"""What all measurements of ``python -m bench.gpu`` need: a clock, a service, and a way to go on after a failure."""

from __future__ import annotations

import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.gpu.ground import Ground, Row
from modules.app.service import Service, start

logger = logging.getLogger(__name__)


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
    """Of a run that was made before. The peak of device memory is that of these runs afterwards."""
    if ground.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    return statistics.median(seconds(ground, run) for _ in range(ground.runs))


def attempted(ground: Ground, measure: str, name: str, run: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of one part of a measure. Where it fails, the reason is a row and goes to the log: other parts go on."""
    free(ground)
    held = torch.cuda.memory_allocated() if ground.on_gpu else 0
    logger.info("%s: %s begins, with %.2f GB held on the device", measure, name, held / 1e9)
    try:
        yield from run()
    except Exception as error:
        logger.exception("%s: %s failed", measure, name)
        lines = str(error).strip().splitlines() or [""]
        yield Row(measure, f"{name}: failed", math.nan, "", note=f"{type(error).__name__}: {lines[0]}")


def free(ground: Ground) -> None:
    """Gives back what nobody uses any more."""
    if ground.on_gpu:
        torch.compiler.reset()  # compiled code holds the model that it is of
    gc.collect()
    if ground.on_gpu:
        torch.cuda.empty_cache()


def dtype_of(ground: Ground) -> torch.dtype:
    return torch.bfloat16 if ground.on_gpu else torch.float32


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
