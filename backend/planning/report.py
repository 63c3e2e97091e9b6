"""A memory plan for people and for programs, and the table of usual cards in ``docs/memory.md``. Pure, without
torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from backend.memory_management import (
    WEIGHT_PRECISIONS,
    MemoryPlan,
    MemoryPlanError,
    MemoryRules,
    format_bytes,
    plan_memory,
)
from backend.planning.activations import Workload
from backend.planning.costs import DeviceMemory, Placement
from backend.planning.model_specs import FLUX_DEV, ModelSizes

REPORTED_SHARE = 0.98
"""What of its GiB a card reports as its memory: an RTX 4090 of 24 GiB reports 23.51."""
SUSTAINED_SHARE = 0.46
"""Share of the maker's dense bf16 rate that compiled Flux reaches: 463 of 989 TFLOP/s on an H100, 81 of 165 on an
RTX 4090."""


@dataclass(frozen=True)
class Card:
    """A usual card: GiB as it is sold, the maker's dense bf16 TFLOP/s, and a usual copy bandwidth of its bus in
    GB/s."""

    name: str
    gib: int
    capability: tuple[int, int]
    tflops: float
    bandwidth: float

    @property
    def reported_bytes(self) -> int:
        return int(REPORTED_SHARE * self.gib * 2**30)

    def device(
        self, total_bytes: int | None = None, host_bytes: int = 64 * 10**9, bandwidth: float | None = None
    ) -> DeviceMemory:
        """A device of this card's speed, with its own memory or another amount."""
        total = self.reported_bytes if total_bytes is None else total_bytes
        return DeviceMemory(
            "cuda",
            total,
            None,
            host_bytes,
            bandwidth or self.bandwidth * 1e9,
            self.tflops * 1e12 * SUSTAINED_SHARE,
            self.capability,
        )


CARDS = (
    Card("RTX 4060", 8, (8, 9), 30, 13),
    Card("RTX 4070", 12, (8, 9), 58, 25),
    Card("RTX 4080", 16, (8, 9), 97, 25),
    Card("RTX 4090", 24, (8, 9), 165, 25),
    Card("RTX 5090", 32, (12, 0), 209, 50),
    Card("A100 PCIe", 40, (8, 0), 312, 25),
    Card("L40S", 48, (8, 9), 362, 25),
    Card("H100 SXM", 80, (9, 0), 989, 50),
    Card("RTX PRO 6000", 96, (12, 0), 503, 50),
    Card("H200", 141, (9, 0), 989, 50),
)


def emulated_memory(total_bytes: int, host_bytes: int, bandwidth: float | None = None) -> DeviceMemory:
    """An emulated device: host memory with a budget, and about the speed that two CPU cores sustain."""
    return DeviceMemory("emulated", total_bytes, None, host_bytes, bandwidth or 25e9, 1e11)


def nearest_card(total_bytes: int) -> Card:
    """The largest usual card that is not larger (by name), else the smallest."""
    return max((card for card in CARDS if card.gib * 10**9 <= total_bytes), key=lambda card: card.gib, default=CARDS[0])


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


def card_table() -> str:
    """Markdown: what each usual card does with FLUX.1-dev at 1024 x 1024, one detail repainted, enlarged by 2, 64 GB
    of host memory."""
    workload = Workload(1024, 1024, detail_crop=1024, scale=2)

    def cell(card: Card, weight_precision: str) -> str:
        try:
            plan = plan_memory(card.device(), FLUX_DEV, workload, MemoryRules(weight_precision=weight_precision))
        except MemoryPlanError as error:
            return f"{format_bytes(error.missing_bytes)} missing"
        return (
            f"{described_placements(plan.placements)}; {format_bytes(plan.predicted_peak_bytes)}, "
            f"{plan.predicted_seconds:.0f} s"
        )

    head = ["Card", "Memory", *(f"`{weight_precision}`" for weight_precision in WEIGHT_PRECISIONS)]
    rows = [
        [
            f"{card.name} {card.gib} GB",
            format_bytes(card.reported_bytes),
            *(cell(card, weight_precision) for weight_precision in WEIGHT_PRECISIONS),
        ]
        for card in CARDS
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def described_placements(placements: Mapping[str, Placement]) -> str:
    """What denoises (and Flux's T5) by name, and what else does not simply stay."""
    labels = {"transformer": "transformer", "text_encoder_2": "T5"} if "transformer" in placements else {"unet": "UNet"}
    main = [f"{label} {placements[name].dtype} {_kind(placements[name])}" for name, label in labels.items()]
    others = [f"{name} {_kind(p)}" for name, p in placements.items() if name not in labels and _kind(p) != "resident"]
    return ", ".join([*main, *others])


def _kind(placement: Placement) -> str:
    return placement.kind + (", tiled" if placement.tiled else "")
