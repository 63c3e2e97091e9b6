"""Makes the plan from the best combination that was found. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from backend.planning.activations import Workload, upscale_tile_sides
from backend.planning.costs import DeviceMemory, Placement
from backend.planning.model_specs import ModelSpec
from backend.planning.plan import MemoryPlan, VRAMState
from backend.planning.reasons import plan_error, plan_reasons
from backend.planning.rules import DEFAULT_RULES, MemoryRules, has_own_memory, inference_share, is_large
from backend.planning.search import SECONDS_DIGITS, Choice, PlanSearch

MAX_DETAIL_BATCH = 8
"""Details in one batch: a larger batch gains little more, and loses more work when memory is short after all."""


def plan_memory(
    device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules = DEFAULT_RULES
) -> MemoryPlan:
    """The fastest plan that fits the device and the host and rounds weights no further than ``rules.weight_precision``
    allows.

    Of equally fast plans it is the one that rounds least, then the one that makes the fewest concessions. Raises
    :class:`MemoryPlanError` when none fits.
    """
    tiles = upscale_tile_sides(workload, device.type == "cpu")
    searches = [
        PlanSearch(device, models, replace(workload, upscale_tile=tile), rules, halvings)
        for halvings, tile in enumerate(tiles)
    ]
    found = [(best, search) for search in searches if (best := search.fastest())]
    if not found:
        raise plan_error(searches[-1])
    (_, choice), search = min(found, key=lambda one: one[0][0])
    return _plan(search, choice)


def predicted_peak(
    device: DeviceMemory, models: ModelSpec, workload: Workload, placements: Mapping[str, Placement]
) -> int:
    """What the device holds at the worst moment of the workload, in bytes, when every model is placed as
    ``placements`` says."""
    search = PlanSearch(device, models, workload, DEFAULT_RULES)
    return search.demand(tuple(search.option(name, placements[name]) for name in models.components))[0] + search.reserve


def _plan(search: PlanSearch, choice: Choice) -> MemoryPlan:
    device, rules = search.device, search.rules
    inference = max(int(inference_share(device, rules) * device.total_bytes), search.inference_need(choice))
    overrun = sum(option.standing + option.waiting for option in choice) - (device.total_bytes - inference)
    waiting = sum(option.waiting for option in choice)
    pin_bytes = min(search.pin_limit, waiting) if device.type == "cuda" else 0
    return MemoryPlan(
        state=_state(search, choice, overrun),
        inference_bytes=inference,
        model_bytes=device.total_bytes - inference,
        reserve_bytes=search.reserve,
        placements=MappingProxyType({option.name: option.placement for option in choice}),
        max_detail_batch=_max_detail_batch(search, choice),
        upscale_tile=search.workload.upscale_tile,
        pin_bytes=pin_bytes,
        use_streams=device.type == "cuda",
        predicted_peak_bytes=search.demand(choice)[0] + search.reserve,
        predicted_seconds=round(search.seconds(choice), SECONDS_DIGITS),
        reasons=tuple(plan_reasons(search, choice, overrun, pin_bytes)),
    )


def _state(search: PlanSearch, choice: Choice, overrun: int) -> VRAMState:
    """``overrun`` is how many bytes all models together exceed their share by."""
    device, kinds = search.device, {option.placement.kind for option in choice}
    if not has_own_memory(device):
        return VRAMState.SHARED if device.type == "unified" else VRAMState.DISABLED
    if "layer offload" in kinds:
        return VRAMState.NO_VRAM
    large = is_large(device, search.rules)
    if kinds != {"resident"} and overrun > (search.rules.large_overrun_bytes if large else 0):
        return VRAMState.LOW_VRAM
    return VRAMState.HIGH_VRAM if large else VRAMState.NORMAL_VRAM


def _max_detail_batch(search: PlanSearch, choice: Choice) -> int:
    denoiser = search.models.denoiser
    denoising = [step for step in search.steps if step.stage == "detail" and step.components == (denoiser,)]
    if not denoising:
        return 1
    passing = next(option.passing for option in choice if option.name == denoiser)
    room = search.usable - sum(option.standing for option in choice) - passing
    return min(MAX_DETAIL_BATCH, max(1, room // denoising[0].memory) * search.workload.outputs)
