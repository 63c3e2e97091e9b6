"""Why a memory plan is what it is, one sentence a decision, and what is missing where none fits. Pure, without
torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from backend.core.units import GIB, format_bytes
from backend.planning.advice import Change
from backend.planning.costs import Kind, Placement
from backend.planning.model_specs import PACKED
from backend.planning.plan import MemoryPlanError
from backend.planning.rules import (
    computes_fp8,
    has_own_memory,
    inference_share,
    is_large,
)
from backend.planning.search import Choice, PlanSearch, activations

OFFLOADED: Mapping[Kind, str] = MappingProxyType(
    {
        "model offload": "is copied to the device when a step needs it and dropped afterwards",
        "partial": "keeps {kept} of its {blocks} blocks on the device and streams the others, two at a time",
        "block offload": "streams through the device block by block, two at a time",
        "layer offload": "passes through the device layer by layer, which is slow",
    }
)


def plan_reasons(search: PlanSearch, choice: Choice, overrun: int, pin_bytes: int, why_precision: str) -> Iterator[str]:
    """All reasons for a choice. ``overrun`` is how many bytes all models together exceed their share by, ``pin_bytes``
    what is pinned of the host's memory, ``why_precision`` what was taken as the weight precision ("" = what was
    asked for)."""
    if why_precision:
        yield why_precision
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
            f"{name} ({size} in {placement.dtype}) "
            f"{OFFLOADED[placement.kind].format(kept=placement.kept_blocks, blocks=len(component.blocks))}: "
            f"to stay it would need {format_bytes(over)} more."
        )
    if placement.dtype == PACKED:
        yield (
            f"{name} stays in the {component.on_disk} of its file and is dequantized layer by layer: "
            f"{format_bytes(component.size())} become {size}."
        )
    elif placement.dtype != component.dtype:
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
    dtype = search.models.components[search.models.denoiser].dtype
    if wanted and device.type == "cuda" and not computes_fp8(device, dtype):
        yield "fp8 saves memory but no computation here: that needs compute capability 8.9 or newer, and bfloat16."


def _costs(search: PlanSearch, choice: Choice, pin_bytes: int) -> Iterator[str]:
    waiting = sum(option.waiting for option in choice)
    if waiting:
        resident = sum(search.option(option.name, _resident(option.placement)).seconds for option in choice)
        pinned = f", {format_bytes(pin_bytes)} of it pinned," if search.device.type == "cuda" else ""
        if reread := search.host_use(choice).reread:
            yield (
                f"{format_bytes(reread)} of them are read from the disk whenever they are needed: the host's memory "
                "does not hold them, which is slow."
            )
        yield (
            f"{format_bytes(waiting)} of models wait in host memory{pinned} and moving them costs "
            f"{search.seconds(choice) - resident:.2f} s a prediction."
        )
    yield f"The memory for activations is {search.models.costs_source}."


def _resident(placement: Placement) -> Placement:
    return Placement("resident", placement.dtype, placement.tiled)


def plan_error(search: PlanSearch, advise: Callable[[str], list[Change]]) -> MemoryPlanError:
    """What the combination that lacks least still lacks, where, and what to change. ``advise`` gives the changes,
    those of the field first that it is called with."""
    leanest = search.leanest()
    (device, host), (_, step) = search.missing(leanest), search.demand(leanest)
    missing, where = max((device, "device"), (host, "host"))
    worker = next(option.placement for option in leanest if option.name == step.components[-1])
    need = activations(step, worker)
    too_large = host >= device or missing >= need or not step.lower
    of_pictures = too_large and missing <= search.pictures
    changes = advise("image" if of_pictures else "weight_precision" if too_large else step.lower)
    needs = "the models need more than there is"
    if of_pictures:
        needs = f"the pictures take {format_bytes(search.pictures)} beside the models"
    if not too_large:
        needs = f"the step '{step.stage}' needs {format_bytes(need)} for this request beside the models"
    lacking = f"{format_bytes(missing)} ({missing} bytes) of {where} memory are missing: {needs}"
    return MemoryPlanError(lacking, missing, changes)
