"""Makes the plan from the best combination that was found. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from backend.planning.activations import Workload, canvas_bytes, picture_tokens, upscale_tile_sides
from backend.planning.advice import REQUEST, Case, advised_changes
from backend.planning.costs import DeviceMemory, Placement
from backend.planning.model_specs import ModelSpec
from backend.planning.plan import MemoryPlan, VRAMState
from backend.planning.precision import resolved_rules
from backend.planning.reasons import plan_error, plan_reasons
from backend.planning.redraw_tiles import MOST_SCALE
from backend.planning.rules import DEFAULT_RULES, MemoryRules, has_own_memory, inference_share, is_large
from backend.planning.search import SECONDS_DIGITS, Choice, PlanSearch, Rank

MAX_DETAIL_BATCH = 8
"""Details in one batch: a larger batch gains little more, and loses more work when memory is short after all."""
MOST_PIXELS = 2**28
"""Of one picture: more than any request may ask for."""
ENOUGH = 2**60
"""Bytes: more than any plan lacks."""


def plan_memory(
    device: DeviceMemory,
    models: ModelSpec,
    workload: Workload,
    rules: MemoryRules = DEFAULT_RULES,
    changeable: Sequence[str] = REQUEST,
) -> MemoryPlan:
    """The fastest plan that fits the device and the host and rounds weights no further than ``rules.weight_precision``
    allows.

    Of equally fast plans it is the one that rounds least, then the one that makes the fewest concessions. Raises
    :class:`MemoryPlanError` when none fits, with advice that was tried: what to change of the ``changeable`` fields
    (:mod:`backend.planning.advice`).
    """
    for resolved, why in resolved_rules(device, models, workload, rules):
        searches = _searches(device, models, workload, resolved)
        found: tuple[PlanSearch, Choice] | None = None
        least: Rank | None = None
        for search in searches:
            if best := search.fastest(least):
                least, choice = best
                found = search, choice
        if found:
            return _plan(*found, why)
    case = Case(device, models, workload, rules)
    raise plan_error(searches[-1], lambda first: advised_changes(case, missing_bytes, changeable, first))


def missing_bytes(case: Case) -> tuple[int, int]:
    """What the combination that lacks least lacks on the device and on the host; 0 and 0 where a plan fits."""
    least = (ENOUGH, ENOUGH)
    for rules, _ in resolved_rules(case.device, case.models, case.workload, case.rules):
        for search in _searches(case.device, case.models, case.workload, rules):
            least = min(least, search.missing(search.leanest()), key=sum)
            if not any(least):
                return least
    return least


def _searches(device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules) -> list[PlanSearch]:
    """One for each size that the upscaler's tiles may have."""
    tiles = upscale_tile_sides(workload, device.type == "cpu")
    return [
        PlanSearch(device, models, replace(workload, upscale_tile=tile), rules, halvings)
        for halvings, tile in enumerate(tiles)
    ]


def predicted_peak(
    device: DeviceMemory, models: ModelSpec, workload: Workload, placements: Mapping[str, Placement]
) -> int:
    """What the device holds at the worst moment of the workload, in bytes, when every model is placed as
    ``placements`` says."""
    search = PlanSearch(device, models, workload, DEFAULT_RULES)
    return search.demand(tuple(search.option(name, placements[name]) for name in models.components))[0] + search.reserve


def _plan(search: PlanSearch, choice: Choice, why_precision: str) -> MemoryPlan:
    device, rules = search.device, search.rules
    inference = max(int(inference_share(device, rules) * device.total_bytes), search.inference_need(choice))
    overrun = sum(option.standing + option.waiting for option in choice) - (device.total_bytes - inference)
    use = search.host_use(choice)
    pin_bytes = use.pinned if device.type == "cuda" else 0
    return MemoryPlan(
        state=_state(search, choice, overrun),
        inference_bytes=inference,
        model_bytes=device.total_bytes - inference,
        reserve_bytes=search.reserve,
        placements=MappingProxyType({option.name: option.placement for option in choice}),
        max_detail_batch=_max_detail_batch(search, choice),
        max_tile_batch=_max_tile_batch(search, choice),
        one_pass_pixels=_one_pass_pixels(search, choice),
        upscale_tile=search.workload.upscale_tile,
        pin_bytes=pin_bytes,
        reread_bytes=use.reread,
        pin_limit=search.pin_limit if device.type == "cuda" else 0,
        picture_bytes=search.pictures,
        step_bytes=search.step_bytes(choice),
        use_streams=device.type == "cuda",
        predicted_peak_bytes=search.demand(choice)[0] + search.reserve,
        predicted_seconds=round(search.seconds(choice), SECONDS_DIGITS),
        reasons=tuple(plan_reasons(search, choice, overrun, pin_bytes, why_precision)),
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
    return min(
        MAX_DETAIL_BATCH, max(1, _denoising_room(search, choice) // denoising[0].memory) * search.workload.outputs
    )


def _max_tile_batch(search: PlanSearch, choice: Choice) -> int:
    models = search.models
    latents = canvas_bytes(MOST_SCALE * models.native, MOST_SCALE * models.native, models)
    room = _denoising_room(search, choice) - latents
    tile = models.costs["denoise"].memory(picture_tokens(models.native, models.native, models))
    return min(MAX_DETAIL_BATCH, max(1, int(room / tile)))


def _one_pass_pixels(search: PlanSearch, choice: Choice) -> int:
    """With all other models gone, as the OOM fallback leaves it. The memory grows with the pixels, so the most is found
    by halving."""
    models = search.models
    denoiser = next(option for option in choice if option.name == models.denoiser)
    room = search.usable - search.remembered - denoiser.standing - denoiser.passing
    memory = models.costs["denoise"].memory
    fits, too_many = 0, MOST_PIXELS
    while too_many - fits > 1:
        pixels = (fits + too_many) // 2
        tokens = picture_tokens(0, 0, models) + pixels / models.token_pixels**2
        fits, too_many = (pixels, too_many) if memory(tokens) <= room else (fits, pixels)
    return fits


def _denoising_room(search: PlanSearch, choice: Choice) -> int:
    """Bytes that the denoiser's activations may take beside the models."""
    passing = next(option.passing for option in choice if option.name == search.models.denoiser)
    return search.usable - search.remembered - sum(option.standing for option in choice) - passing
