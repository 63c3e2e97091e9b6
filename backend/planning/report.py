"""A memory plan for people and for programs. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from backend.core.units import format_bytes
from backend.planning.costs import Placement, waiting_bytes
from backend.planning.model_specs import Component, ModelSpec
from backend.planning.plan import MemoryPlan


def plan_as_data(plan: MemoryPlan) -> dict[str, Any]:
    """The fields of the plan by name, ready for JSON."""
    data = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return data | {
        "state": plan.state.name,
        "placements": {name: asdict(placement) for name, placement in plan.placements.items()},
    }


def plan_as_text(plan: MemoryPlan, models: ModelSpec) -> str:
    """A short table and the reasons."""
    rows = [
        (name, format_bytes(models.components[name].size(p.dtype)), p.dtype, _kind(p, models.components[name]))
        for name, p in plan.placements.items()
    ]
    lines = [
        f"{name:<16} {size:>9}  {dtype:<12} {kind}"
        for name, size, dtype, kind in [("model", "size", "precision", "placement"), *rows]
    ]
    waiting = sum(waiting_bytes(p, models.components[name]) for name, p in plan.placements.items())
    on_host = "nothing"
    if waiting:
        on_host = f"{format_bytes(waiting)} of models, {format_bytes(plan.pin_bytes)} of them pinned"
    if plan.reread_bytes:
        on_host += f", {format_bytes(plan.reread_bytes)} read from the disk at every use"
    if plan.picture_bytes:
        on_host += f"; {format_bytes(plan.picture_bytes)} for the pictures"
    total = plan.inference_bytes + plan.model_bytes
    summary = [
        f"state            {plan.state.name}",
        f"predicted time   {plan.predicted_seconds:.1f} s a prediction, models loaded",
        f"predicted peak   {format_bytes(plan.predicted_peak_bytes)} of {format_bytes(total)}",
        f"shares           {format_bytes(plan.inference_bytes)} inference, {format_bytes(plan.model_bytes)} models, "
        f"{format_bytes(plan.reserve_bytes)} kept back",
        f"on the host      {on_host}",
    ]
    return "\n".join([*summary, "", *lines, "", *(f"- {reason}" for reason in plan.reasons)])


def described_placements(placements: Mapping[str, Placement], models: ModelSpec) -> str:
    """The models that can be streamed, the denoiser first, and of the others those that are not resident."""
    large = sorted(
        (name for name in placements if models.components[name].blocks), key=lambda name: name != models.denoiser
    )
    main = [
        f"{models.labels.get(name, name)} {placements[name].dtype} {_kind(placements[name], models.components[name])}"
        for name in large
    ]
    told = {name: _kind(p, models.components[name]) for name, p in placements.items() if name not in large}
    others = [f"{name} {kind}" for name, kind in told.items() if kind != "resident"]
    return ", ".join([*main, *others])


def _kind(placement: Placement, component: Component) -> str:
    kept = f" ({placement.kept_blocks} of {len(component.blocks)} blocks stay)" * (placement.kind == "partial")
    return placement.kind + kept + (", tiled" if placement.tiled else "")
