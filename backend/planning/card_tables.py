"""The tables of cards in ``docs/memory.md``, ``docs/cards.md`` and ``docs/card-24gb.md``: what the memory plan does
with every family, and what helps where memory is tight. Pure, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backend.core.units import format_bytes
from backend.planning.activations import Workload
from backend.planning.costs import DeviceMemory
from backend.planning.gpu_specs import Card, usual_cards
from backend.planning.model_specs import ModelSpec
from backend.planning.plan import MemoryPlan, MemoryPlanError
from backend.planning.planner import plan_memory
from backend.planning.report import described_placements
from backend.planning.rules import MemoryRules

SIZES_GIB = (8, 12, 16, 24, 48, 80)
BY_RESOLUTION = "RTX 4090"
COMPARED = ("auto", "bf16", "fp8", "nf4")
"""Weight precisions, as columns."""
SAVING: Mapping[str, Mapping[str, Any]] = {
    "`weight_precision` bf16": {"weight_precision": "bf16"},
    "`weight_precision` fp8": {"weight_precision": "fp8"},
    "`weight_precision` nf4": {"weight_precision": "nf4"},
    "`megapixels` 0.25": {"side": 0.5},
    "`adetailer` off": {"details": False},
    "`scale` 1": {"scale": 1},
}
"""The steps to take where it is tight, as columns: what each changes. Those of ``weight_precision`` are for models
whose blocks can be rounded."""
ASKING: Mapping[str, Mapping[str, Any]] = {
    "`num_outputs` 2": {"outputs": 2},
    "`num_outputs` 4": {"outputs": 4},
    "`hr_scale` 1.5": {"hires": 1.5},
    "`hr_scale` 2": {"hires": 2.0},
}
"""Requests that need more."""
SIDES, OUTPUTS = (0.5, 0.75, 1, 1.25, 1.5), (1, 2, 4)
"""Of the table by resolution: sides as shares of the native one, and pictures at once."""


def card_table(models: ModelSpec) -> str:
    """Markdown: what each usual card does with a model at 1024 x 1024, one detail repainted, upscaled by 2, 64 GB of
    host memory."""
    workload = Workload(1024, 1024, detail_crop=1024, scale=2)

    def cell(card: Card, weight_precision: str) -> str:
        try:
            plan = plan_memory(in_use(card), models, workload, MemoryRules(weight_precision=weight_precision))
        except MemoryPlanError as error:
            return f"{format_bytes(error.missing_bytes)} missing"
        return (
            f"{described_placements(plan.placements, models)}; {format_bytes(plan.predicted_peak_bytes)}, "
            f"{plan.predicted_seconds:.0f} s"
        )

    head = ["Card", "Memory", *(f"`{weight_precision}`" for weight_precision in COMPARED)]
    rows = [
        [
            card.title,
            format_bytes(card.reported_bytes - card.held_bytes),
            *(cell(card, weight_precision) for weight_precision in COMPARED),
        ]
        for card in usual_cards()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def one_card_table(card: Card, known: Iterable[ModelSpec]) -> str:
    """Markdown: what one card does with every model, and with weights as they are where the plan would round them."""
    rows = [["Model", "`weight_precision`", "Placement", "Predicted peak", "Pinned on the host", "A picture"]]
    for models in known:
        rounds = models.components[models.denoiser].rounds
        for weight_precision in ("auto", "bf16") if rounds else ("auto",):
            plan = _plan(models, card, weight_precision)
            if isinstance(plan, MemoryPlan):
                told = [
                    described_placements(plan.placements, models),
                    format_bytes(plan.predicted_peak_bytes),
                    format_bytes(plan.pin_bytes),
                    f"{plan.predicted_seconds:.0f} s",
                ]
            else:
                told = [f"{format_bytes(plan.missing_bytes)} missing", "", "", ""]
            rows.append([models.name, weight_precision, *told])
    return _markdown(rows)


def cards_document(models: Iterable[ModelSpec]) -> str:
    """The tables of these models, in markdown."""
    cards = [card for card in usual_cards() if card.gib in SIZES_GIB]
    return "\n\n".join(_tables(spec, cards) for spec in models)


def _tables(models: ModelSpec, cards: Sequence[Card]) -> str:
    usual = [["Card", "State", "Placement", "Predicted peak", "Seconds"]]
    for card in cards:
        plan = _plan(models, card)
        if isinstance(plan, MemoryPlan):
            told = [
                plan.state.name,
                described_placements(plan.placements, models),
                format_bytes(plan.predicted_peak_bytes),
                f"{plan.predicted_seconds:.1f}",
            ]
        else:
            told = ["", f"{format_bytes(plan.missing_bytes)} missing", "", ""]
        usual.append([_name(card), *told])
    rounds = models.components[models.denoiser].rounds
    saves = {name: change for name, change in SAVING.items() if rounds or "weight_precision" not in change}
    saving, asking = (
        [["Card", *columns], *([_name(card), *_cells(models, card, columns)] for card in cards)]
        for columns in (saves, ASKING)
    )
    card = next(card for card in cards if card.name == BY_RESOLUTION)
    sides = [["Size", *(f"{count} picture{'s' * (count > 1)}" for count in OUTPUTS)]]
    for side in SIDES:
        pixels = int(models.native * side)
        sides.append(
            [
                f"{pixels} x {pixels}",
                *_cells(models, card, {str(count): {"side": side, "outputs": count} for count in OUTPUTS}),
            ]
        )
    tables = {
        "": usual,
        "What saves memory or time:": saving,
        "What asks for more:": asking,
        f"By resolution, on {_name(card)}:": sides,
    }
    head = f"## {models.name}, {models.native} x {models.native}, {models.steps} steps"
    return "\n\n".join([head, *(part for title, table in tables.items() for part in (title, _markdown(table)) if part)])


def _plan(
    models: ModelSpec,
    card: Card,
    weight_precision: str = "auto",
    side: float = 1,
    outputs: int = 1,
    hires: float = 0,
    details: bool = True,
    scale: float = 2,
) -> MemoryPlan | MemoryPlanError:
    """The plan for one picture of the family's own size with one detail repainted, upscaled by 2, but for what is
    given."""
    native = int(models.native * side)
    second = (int(native * hires), int(native * hires)) if hires else None
    detail = models.native if details else 0
    workload = Workload(
        native, native, outputs=outputs, steps=models.steps, hires=second, detail_crop=detail, scale=scale
    )
    try:
        return plan_memory(in_use(card), models, workload, MemoryRules(weight_precision=weight_precision))
    except MemoryPlanError as error:
        return error


def _cells(models: ModelSpec, card: Card, columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    plans = [_plan(models, card, **change) for change in columns.values()]
    return [
        f"{format_bytes(plan.predicted_peak_bytes)}, {plan.predicted_seconds:.1f} s"
        if isinstance(plan, MemoryPlan)
        else f"{format_bytes(plan.missing_bytes)} missing"
        for plan in plans
    ]


def in_use(card: Card) -> DeviceMemory:
    """The card as its owner has it: a consumer card shows a desktop too."""
    return card.device(held_bytes=card.held_bytes)


def _name(card: Card) -> str:
    return f"{card.gib} GB ({card.name})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
