"""The product's own set-up and predictions on a fake card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.fake_cuda import FakeCard

from backend.core.settings import Settings
from modules.app.service import Service, start

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
