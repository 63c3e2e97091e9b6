"""A memory plan for people and for programs. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from backend.core.units import format_bytes
from backend.planning.costs import Placement
from backend.planning.model_specs import ModelSizes
from backend.planning.plan import MemoryPlan


def plan_as_data(plan: MemoryPlan) -> dict[str, Any]:
    """The fields of the plan by name, ready for JSON."""
    data = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return data | {
        "state": plan.state.name,
        "placements": {name: asdict(placement) for name, placement in plan.placements.items()},
    }


def plan_as_text(plan: MemoryPlan, models: ModelSizes) -> str:
    """A short table and the reasons."""
    rows = [
        (name, format_bytes(models.components[name].size(p.dtype)), p.dtype, _kind(p))
        for name, p in plan.placements.items()
    ]
    lines = [
        f"{name:<16} {size:>9}  {dtype:<12} {kind}"
        for name, size, dtype, kind in [("model", "size", "precision", "placement"), *rows]
    ]
    summary = [
        f"state            {plan.state.name}",
        f"shares           {format_bytes(plan.inference_bytes)} inference, {format_bytes(plan.model_bytes)} models, "
        f"{format_bytes(plan.reserve_bytes)} kept back",
        f"predicted peak   {format_bytes(plan.predicted_peak_bytes)}",
        f"predicted time   {plan.predicted_seconds:.1f} s a prediction, models loaded",
        "pinned on host   "
        f"{format_bytes(plan.pin_bytes)}{', copies beside the computation' if plan.use_streams else ''}",
    ]
    return "\n".join([*summary, "", *lines, "", *(f"- {reason}" for reason in plan.reasons)])


def described_placements(placements: Mapping[str, Placement]) -> str:
    """What denoises (and Flux's T5) by name, and what else does not simply stay."""
    labels = {"transformer": "transformer", "text_encoder_2": "T5"} if "transformer" in placements else {"unet": "UNet"}
    main = [f"{label} {placements[name].dtype} {_kind(placements[name])}" for name, label in labels.items()]
    others = [f"{name} {_kind(p)}" for name, p in placements.items() if name not in labels and _kind(p) != "resident"]
    return ", ".join([*main, *others])


def _kind(placement: Placement) -> str:
    return placement.kind + (", tiled" if placement.tiled else "")
