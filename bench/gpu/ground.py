"""What ``python -m bench.gpu`` measures on, and a row of its table."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from backend.core.scratch import scratch_for_process
from backend.core.settings import Settings
from modules.detection.yolo import offline_ultralytics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ground:
    """What is measured on. ``model`` is the setting; sizes are of one picture; ``caps`` are the cards to be tried,
    in bytes. ``pictures`` is where a picture is written, if anywhere."""

    device: torch.device
    model: str
    folder: Path
    side: int
    steps: int
    caps: tuple[int, ...]
    runs: int = 2
    pictures: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def settings(self, **changes: Any) -> Settings:
        dtype = (
            "auto" if self.on_gpu else "float32"
        )  # in which the embedded models' sizes are those of ``caps`` on every machine
        # rounded weights are not kept: to write them would take longer than to round them again
        chosen = {"model": self.model, "dtype": dtype, "log_level": "ERROR", "warm_up": False, "quantized_cache_gb": 0}
        return replace(Settings(), **{**chosen, "disabled_extensions": without_libraries(), **changes})


def without_libraries() -> tuple[str, ...]:
    """The stages whose libraries cannot be imported, as on a machine to which only what is measured was carried."""
    needed = {"adetailer": "ultralytics", "face_enhance": "ultralytics", "upscale": "spandrel", "hires": "spandrel"}
    return tuple(stage for stage, library in needed.items() if not can_be_imported(library))


@cache
def can_be_imported(library: str) -> bool:
    """Whether it is there with all that it needs."""
    if "ultralytics" not in sys.modules:
        offline_ultralytics(scratch_for_process() / "ultralytics")
    try:
        import_module(library)
    except ImportError as error:
        logger.warning("%s is left out: %s", library, error)
        return False
    return True


@dataclass(frozen=True)
class Row:
    """A line of the table: a number with its unit, the limit that physics sets where there is one, and what to know
    about it."""

    measure: str
    name: str
    value: float
    unit: str
    limit: float | None = None
    note: str = ""
