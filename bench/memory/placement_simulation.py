"""Simulates three ways of placing models: bytes moved and seconds. This is no measurement.

    python -m bench.memory.placement_simulation [--json]

Four traces of 20 predictions (the same prompt or a new one each time; plain, or with Hires fix to 1536 x 1536 and one
face repainted at 1024) with FLUX.1-dev at 1024 x 1024 and 28 steps, on common cards, which report 98% of their GiB, in
machines with 64 GB of memory, or 32 GB for cards up to 12 GB. "bf16" and "fp8" are the precision of transformer and T5
in the checkpoint. A figure is the mean of its trace, with the first upload and without reading files.

- **our plan** is what ``plan_memory`` decides for the trace. "rounded" may quantize down to nf4; the other columns
  compute alike. "without partial" streams all blocks of a transformer that does not fit, as before version 2.
- **everything resident** is our plan on a card of this speed that has room for all models.
- **component offload** is accelerate's: a model is copied to the device at its first use, and back when the next model
  is used or the pipeline ends. Where a model does not fit beside its activations this cannot run: "no", with the bytes
  that it would move.
- **WebUI rule** is that of the Forge forks: before a load, models are evicted, least recently used first and by a copy
  back, until 1.3 x the size of the new model is free, and what the step needs beside it (at least 1 GiB). What still
  does not fit is streamed from the host at every forward pass.

Assumed in favour of the others: both have our prompt cache, and our tiled autoencoder where the whole one does not fit;
they reserve only the driver's context (we reserve 1.5% more); and their host has room for every model, where ours reads
from the disk again what it has no room for. Their copies are pageable, both ways. Ours are pinned up to half of the
host's memory; a copy beside the computation still costs a quarter of its time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from backend.memory_management import MemoryPlanError, MemoryRules, plan_memory
from backend.planning.activations import TILING_WORK, Step, Workload, prediction_steps
from backend.planning.costs import (
    PAGEABLE_SPEED,
    DeviceMemory,
    moved_bytes,
    standing_bytes,
    step_seconds,
    waiting_bytes,
)
from backend.planning.gpu_specs import card_named
from backend.planning.model_specs import SLOWDOWN, ModelSpec
from modules.families.registry import known_models

SIMULATED = ("H100 SXM", "L40S", "RTX 4090", "RTX 4080", "RTX 4070", "RTX 4060")
PREDICTIONS = 20
SMALL_HOST, LARGE_HOST = 32 * 10**9, 64 * 10**9
CONTEXT = MemoryRules().context_bytes
DESKTOP_BYTES = 3 * 2**29
PLAIN = Workload(1024, 1024)
RICH = Workload(1024, 1024, hires=(1536, 1536), detail_crop=1024)
FLUX_DEV = known_models()["flux-dev"]
FP8_MODELS = replace(
    FLUX_DEV, components={name: replace(c, dtype="fp8") if c.blocks else c for name, c in FLUX_DEV.components.items()}
)
MODELS = {"bf16": FLUX_DEV, "fp8": FP8_MODELS}


@dataclass(frozen=True)
class Trace:
    name: str
    workload: Workload
    new_prompts: bool

    def predictions(self, models: ModelSpec) -> Iterator[tuple[Step, ...]]:
        """The steps of every prediction. The first prompt is always new."""
        for index in range(PREDICTIONS):
            yield prediction_steps(self.workload, models, new_prompt=self.new_prompts or index == 0)


TRACES = (
    Trace("same prompt", PLAIN, False),
    Trace("new prompts", PLAIN, True),
    Trace("same prompt, hires and detail", RICH, False),
    Trace("new prompts, hires and detail", RICH, True),
)


@dataclass(frozen=True)
class Outcome:
    """Of a whole trace: weight bytes moved either way, and seconds. ``runs`` is False where a model does not fit."""

    moved_bytes: int
    seconds: float
    runs: bool = True


def activations(step: Step, models: ModelSpec, room: int) -> tuple[int, float]:
    """Bytes beside the weights, and seconds times rate, of a step; the autoencoder works in tiles where the whole
    needs more than ``room``."""
    work = step.work * step.forwards * SLOWDOWN.get(models.components[step.components[-1]].dtype, 1)
    return (
        (step.memory, work)
        if step.memory <= room
        else (step.tiled_memory, work * (TILING_WORK if step.tiled_memory < step.memory else 1))
    )


def component_offload(trace: Trace, models: ModelSpec, device: DeviceMemory) -> Outcome:
    """One component on the device at a time; every change of component copies one back and the next in."""
    size, room = (
        {name: c.size() for name, c in models.components.items()},
        device.total_bytes - device.held_bytes - CONTEXT,
    )
    moved, work, runs = 0, 0.0, True
    for steps in trace.predictions(models):
        inside = ""
        for step in steps:
            for name in step.components:
                moved += 0 if name == inside else size[name] + size.get(inside, 0)
                inside = name
            memory, step_work = activations(step, models, room - size[inside])
            runs &= size[inside] + memory <= room
            work += step_work
        moved += size[inside]
    return Outcome(moved, work / device.flops + moved / (device.copy_bandwidth * PAGEABLE_SPEED), runs)


def webui_rule(trace: Trace, models: ModelSpec, device: DeviceMemory) -> Outcome:
    """Models stay until the next load wants 1.3 x its size; a model that does not fit is kept in part, the rest
    streamed."""
    size, room = (
        {name: c.size() for name, c in models.components.items()},
        device.total_bytes - device.held_bytes - CONTEXT,
    )
    loaded: dict[str, int] = {}  # bytes on the device, the longest unused first
    moved, work, runs = 0, 0.0, True
    for steps in trace.predictions(models):
        for step in steps:
            own = sum(size[name] for name in step.components)
            memory, step_work = activations(step, models, room - own)
            missing = [name for name in step.components if name not in loaded]
            load = sum(size[name] for name in missing)
            beside = max(2**30, memory)
            wanted = max(int(1.3 * load), load + beside)
            for name in [name for name in loaded if name not in step.components]:
                if room - sum(loaded.values()) < wanted:
                    moved += loaded.pop(name)
            for name in missing:
                kept = min(size[name], max(0, room - sum(loaded.values()) - beside))
                loaded[name] = kept
                moved += kept
            for name in step.components:
                loaded[name] = loaded.pop(name)
                moved += (size[name] - loaded[name]) * step.forwards
            runs &= sum(loaded.values()) + memory <= room
            work += step_work
    return Outcome(moved, work / device.flops + moved / (device.copy_bandwidth * PAGEABLE_SPEED), runs)


def our_plan(
    trace: Trace, models: ModelSpec, device: DeviceMemory, weight_precision: str = "bf16", partial: bool = True
) -> Outcome:
    """What the plan for the trace's workload does, step by step; without ``partial`` no model keeps a part of its
    blocks."""
    rules = MemoryRules(weight_precision=weight_precision, partial=partial)
    try:
        plan = plan_memory(device, models, trace.workload, rules)
    except MemoryPlanError:
        return Outcome(0, 0.0, runs=False)
    waiting = sum(waiting_bytes(p, models.components[name]) for name, p in plan.placements.items())
    pinned, reread = (plan.pin_bytes / waiting, plan.reread_bytes / waiting) if waiting else (1.0, 0.0)
    predictions = list(trace.predictions(models))
    used = {name for steps in predictions for step in steps for name in step.components}
    total = sum(standing_bytes(p, models.components[name]) for name, p in plan.placements.items() if name in used)
    seconds = total / device.copy_bandwidth
    for steps in predictions:
        for step, previous in zip(steps, (None, *steps)):
            for name in step.components:
                placement, component = plan.placements[name], models.components[name]
                moved = moved_bytes(placement, component, step, previous)
                total += moved
                works = name == step.components[-1]
                seconds += step_seconds(placement, component, step, moved, works, device, pinned, reread)
    return Outcome(total, seconds)


@dataclass(frozen=True)
class Row:
    """One card, precision and trace under every strategy."""

    card: str
    precision: str
    trace: str
    everything_resident: Outcome
    component_offload: Outcome
    webui_rule: Outcome
    without_partial: Outcome
    our_plan: Outcome
    our_plan_rounded: Outcome

    @property
    def gigabytes(self) -> int:
        return int(self.card.partition(" ")[0])


def simulate() -> list[Row]:
    rows = []
    for name, device in simulated_cards():
        alike = replace(device, capability=None)  # without fp8 matmuls, which the others have not either
        roomy = replace(alike, total_bytes=200 * 10**9, free_bytes=None)
        for precision, models in MODELS.items():
            for trace in TRACES:
                outcomes = (
                    our_plan(trace, models, roomy),
                    component_offload(trace, models, alike),
                    webui_rule(trace, models, alike),
                    our_plan(trace, models, alike, partial=False),
                    our_plan(trace, models, alike),
                    our_plan(trace, models, device, "nf4"),
                )
                rows.append(Row(name, precision, trace.name, *outcomes))
    return rows


def simulated_cards() -> Iterator[tuple[str, DeviceMemory]]:
    """Cards by name, the largest first; the one of 24 GB also with a desktop on it."""
    for card in sorted(map(card_named, SIMULATED), key=lambda card: -card.gib):
        device = card.device(host_bytes=SMALL_HOST if card.gib <= 12 else LARGE_HOST)
        yield f"{card.gib} GB {card.name}", device
        if card.gib == 24:
            yield (
                f"{card.gib} GB {card.name}, 1.5 GiB held",
                replace(device, free_bytes=device.total_bytes - DESKTOP_BYTES),
            )


def markdown(rows: Sequence[Row]) -> str:
    """GB that move in a prediction, and its seconds: averages over the trace."""

    def cell(outcome: Outcome, hypothetical: bool = False) -> str:
        numbers = f"{outcome.moved_bytes / PREDICTIONS / 1e9:.1f} GB"
        if not outcome.runs:
            return f"no ({numbers})" if hypothetical else "no"
        return f"{numbers}, {outcome.seconds / PREDICTIONS:.1f} s"

    head = ["Card", "Checkpoint", "Trace", "everything resident", "component offload", "WebUI rule"]
    head += ["our plan without partial", "our plan", "our plan, rounded"]
    body = [
        [row.card, row.precision, row.trace, cell(row.everything_resident)]
        + [cell(row.component_offload, hypothetical=True), cell(row.webui_rule)]
        + [cell(outcome) for outcome in (row.without_partial, row.our_plan, row.our_plan_rounded)]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="every row with totals of its trace")
    rows = simulate()
    print(json.dumps([asdict(row) for row in rows], indent=2) if parser.parse_args().json else markdown(rows))


if __name__ == "__main__":
    main()
