"""The product's own set-up and predictions on a fake card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.fake_cuda import FakeCard

import backend.devices.runtime
from backend.core.settings import Settings
from backend.memory_management import MemoryPlan, MemoryRules, ModelSpec, Workload, plan_memory, predicted_peak
from backend.planning.costs import Kind
from modules.app.service import Service, start
from modules.extension_optimizer import optional_features

ALONE: Mapping[str, Any] = {"disabled_extensions": list(optional_features())}
"""Settings that leave nothing but the model that generates."""
REQUEST: Mapping[str, Any] = {
    "prompt": "a woman with red hair",
    "seed": 1,
    "num_inference_steps": 6,
    "adetailer": False,
    "scale": 1,
}
"""Words to one picture of the native size, and nothing else."""


@dataclass(frozen=True)
class Prediction:
    """What one prediction did on the card; bytes of weights that the cache moved are ``moved``."""

    flops: int
    peak_bytes: int
    uploaded: int
    pageable: int
    moved: int
    waits: tuple[tuple[str, str], ...]


def start_on_card(model: Path, **settings: Any) -> Service:
    """The set-up without warm-up and compilation. To be called inside of a card."""
    chosen = {"device": "cuda", "compile": "off", "warm_up": False, "log_level": "WARNING", **settings}
    return start(replace(Settings(), model=str(model), **chosen))


def predict_on_card(card: FakeCard, service: Service, **inputs: Any) -> Prediction:
    """:data:`REQUEST` with these inputs."""
    card.peak_bytes = card.allocated_bytes
    flops, uploaded, pageable, waits = card.flops, card.bytes_uploaded, card.pageable_bytes, len(card.waits)
    metrics: dict[str, Any] = {}
    service.predict({**REQUEST, **inputs}, metrics.__setitem__, progress=lambda *args: None)
    return Prediction(
        card.flops - flops,
        card.peak_bytes,
        card.bytes_uploaded - uploaded,
        card.pageable_bytes - pageable,
        metrics["model_bytes_moved"],
        tuple(card.waits[waits:]),
    )


@contextmanager
def every_model_placed(kind: Kind, pin_bytes: int | None = None) -> Iterator[None]:
    """Inside, plans place the models that have blocks as ``kind`` says, and the others as near to that as they can be.

    ``pin_bytes`` of the host are pinned; None is all that waits.
    """
    lighter: Kind = "resident" if kind == "resident" else "model offload"

    def plan(device: Any, spec: ModelSpec, workload: Workload, rules: MemoryRules) -> MemoryPlan:
        made = plan_memory(device, spec, workload, rules)
        placements = {
            name: replace(made.placements[name], kind=kind if component.blocks else lighter)
            for name, component in spec.components.items()
        }
        waiting = sum(
            spec.components[name].size(placement.dtype)
            for name, placement in placements.items()
            if placement.kind != "resident"
        )
        peak = predicted_peak(device, spec, replace(workload, upscale_tile=made.upscale_tile), placements)
        pinned = waiting if pin_bytes is None else pin_bytes
        return replace(made, placements=placements, pin_bytes=pinned, predicted_peak_bytes=peak)

    with patch.object(backend.devices.runtime, "plan_memory", plan):
        yield
