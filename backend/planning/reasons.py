"""Why a memory plan is what it is, one sentence a decision, and what is missing where none fits. Pure, without
torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from backend.core.units import GIB, format_bytes
from backend.planning.activations import Step
from backend.planning.costs import Kind, Placement
from backend.planning.plan import MemoryPlanError
from backend.planning.rules import (
    WEIGHT_PRECISIONS,
    computes_fp8,
    has_own_memory,
    inference_share,
    is_large,
)
from backend.planning.search import Choice, PlanSearch

OFFLOADED: Mapping[Kind, str] = MappingProxyType(
    {
        "model offload": "is copied to the device when a step needs it and dropped afterwards",
        "block offload": "streams through the device block by block, two at a time",
        "layer offload": "passes through the device layer by layer, which is slow",
    }
)


def plan_reasons(search: PlanSearch, choice: Choice, overrun: int, pin_bytes: int) -> Iterator[str]:
    """All reasons for a choice. ``overrun`` is how many bytes all models together exceed their share by, ``pin_bytes``
    what is pinned of the host's memory."""
    yield from _shares(search, choice, overrun)
    yield _capacity(search)
    for index in range(len(choice)):
        yield from _placement(search, choice, index)
    yield from _concessions(search, choice)
    yield from _costs(search, choice, pin_bytes)


def _shares(search: PlanSearch, choice: Choice, overrun: int) -> Iterator[str]:
    total, rules = search.device.total_bytes, search.rules
    if not has_own_memory(search.device):
        yield (
            f"Models and pictures share {format_bytes(total)} of host memory; moving a model would free nothing, "
            "so every model stays."
        )
        return
    share, need = inference_share(search.device, rules), search.inference_need(choice)
    size = f"{'over' if is_large(search.device, rules) else 'up to'} {rules.large_card_bytes / GIB:.0f} GiB"
    aside = f"{share:.0%} ({format_bytes(int(share * total))})"
    if need > share * total:
        yield (
            f"This request needs {format_bytes(need)} for inference, more than the {aside} that a device {size} sets "
            "aside, so the need counts."
        )
    else:
        yield (
            f"A device {size} sets {aside} aside for inference and the rest for models; this request needs "
            f"{format_bytes(need)} of it."
        )
    if overrun > 0:
        yield (
            f"All models together are {format_bytes(overrun)} over their share; they may borrow what inference leaves "
            "unused."
        )


def _capacity(search: PlanSearch) -> str:
    device, reserve = search.device, search.reserve
    held = f"; {format_bytes(device.held_bytes)} are held by others" if device.held_bytes else ""
    kept = (
        f"{format_bytes(reserve)} are kept back for the driver and fragmentation" if reserve else "nothing is kept back"
    )
    return (
        f"Models and activations may fill {format_bytes(search.usable)} of {format_bytes(device.total_bytes)}: "
        f"{kept}{held}."
    )


def _placement(search: PlanSearch, choice: Choice, index: int) -> Iterator[str]:
    name, placement = choice[index].name, choice[index].placement
    component = search.models.components[name]
    size = format_bytes(component.size(placement.dtype))
    if placement.kind != "resident":
        resident = search.option(name, _resident(placement))
        over = search.demand((*choice[:index], resident, *choice[index + 1 :]))[0] - search.usable
        yield (
            f"{name} ({size} in {placement.dtype}) {OFFLOADED[placement.kind]}: to stay it would need "
            f"{format_bytes(over)} more."
        )
    if placement.dtype != component.dtype:
        yield (
            f"{name} is rounded to {placement.dtype}, which weight_precision '{search.rules.weight_precision}' "
            f"allows: {format_bytes(component.size())} become {size}."
        )
    if placement.tiled:
        yield (
            f"{name} works in tiles of {search.models.vae_tile} pixels: less memory, a little more time, and "
            "pixels that differ slightly."
        )


def _concessions(search: PlanSearch, choice: Choice) -> Iterator[str]:
    if search.halvings:
        yield (
            f"The upscaler works in tiles of {search.workload.upscale_tile} pixels: less memory, and more time for "
            "what neighbouring tiles share."
        )
    stay = [option.name for option in choice if option.placement.kind == "resident"]
    if stay:
        yield f"{', '.join(stay)} stay{'s' * (len(stay) == 1)} on the device between predictions."
    device, rules = search.device, search.rules
    wanted = rules.precision_rank > 0 and "fp8_compute" in rules.formats
    if wanted and device.kind == "cuda" and not computes_fp8(device):
        yield "fp8 saves memory but no computation here: that needs compute capability 8.9 or newer."


def _costs(search: PlanSearch, choice: Choice, pin_bytes: int) -> Iterator[str]:
    waiting = sum(option.waiting for option in choice)
    if waiting:
        resident = sum(search.option(option.name, _resident(option.placement)).seconds for option in choice)
        pinned = f", {format_bytes(pin_bytes)} of it pinned," if search.device.kind == "cuda" else ""
        yield (
            f"{format_bytes(waiting)} of models wait in host memory{pinned} and moving them costs "
            f"{search.seconds(choice) - resident:.2f} s a prediction."
        )
    yield f"The memory for activations is {search.models.costs_source}."


def _resident(placement: Placement) -> Placement:
    return Placement("resident", placement.dtype, placement.tiled)


def plan_error(search: PlanSearch) -> MemoryPlanError:
    """What the combination that lacks least still lacks, where, and what to change."""
    leanest = min(search.choices(), key=lambda choice: sum(search.missing(choice)))
    (device, host), (_, step) = search.missing(leanest), search.demand(leanest)
    missing, where = max((device, "device"), (host, "host"))
    if host >= device or missing >= step.memory or not step.lower:
        field, advice = _smaller_models(search, where)
        needs = "the models need more than there is"
    else:
        field, advice = step.lower, f"lower {step.lower}"
        needs = _step_needs(step)
    return MemoryPlanError(
        f"{field}: {format_bytes(missing)} ({missing} bytes) of {where} memory are missing: {needs}; {advice}",
        missing,
        field,
    )


def _smaller_models(search: PlanSearch, where: str) -> tuple[str, str]:
    """The setting to change where the models themselves are too large, and the advice."""
    other = f"choose a smaller model or a machine with more {where} memory"
    coarser = [name for name in WEIGHT_PRECISIONS[search.rules.precision_rank + 1 :] if name in search.rules.formats]
    return ("weight_precision", f"allow weight_precision '{coarser[0]}', or {other}") if coarser else ("model", other)


def _step_needs(step: Step) -> str:
    return f"the step '{step.stage}' needs {format_bytes(step.memory)} for this request beside the models"
