"""What ``weight_precision`` "auto" takes, by the size of the card and by what fits. Pure, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from backend.core.errors import SettingsError
from backend.planning.activations import Workload, upscale_tile_sides
from backend.planning.costs import DeviceMemory, Placement
from backend.planning.model_specs import ModelSpec
from backend.planning.rules import LEVELS, MemoryRules
from backend.planning.search import PlanSearch

LARGE_BYTES = 39 * 10**9
"""A card of 40 GB reports 42 * 10**9 bytes, or a little less."""
SMALL_BYTES = 14 * 10**9
"""A card of 12 GB reports less, one of 16 GB more."""
WORTH_ROUNDING = 0.9
"""4 bits are taken in place of 8 where a prediction then takes at most this share of the time. They cost far more
quality, and times are predicted no better than that."""


def resolved_rules(
    device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules
) -> Iterator[tuple[MemoryRules, str]]:
    """The rules to plan by, each with the reason in words; those that follow count where nothing fits by those before.

    Raises SettingsError for "gguf" where no file has quantized its weights.
    """
    precision = rules.weight_precision
    if precision == "gguf" and not any(component.packed for component in models.components.values()):
        raise SettingsError(
            "weight_precision is 'gguf', but no file of the model has quantized weights; choose a GGUF file as "
            "'model', or use 'auto'"
        )
    if precision != "auto":
        yield rules, ""
        return
    first, why = "bf16", "cards of 40 GB and more compute in 16 bits"
    if device.type != "cuda" or everything_stays(device, models, workload, rules):
        why = "weights are not rounded where they need not be"
    elif models.components[models.denoiser].packed:
        why = "what the file has in few bits is not rounded again"
    elif device.total_bytes < SMALL_BYTES and four_bits_pay(device, models, workload, rules):
        first, why = "nf4", "cards of 12 GB and less store weights in 4 bits where 8 would be slower"
        yield _automatic(four_bits(rules), first, why)
    elif device.total_bytes < LARGE_BYTES:
        first, why = "fp8", "cards of less than 40 GB store weights in 8 bits"
    for level in LEVELS[LEVELS.index(first) :]:
        yield _automatic(rules, level, why if level == first else "less rounding does not fit")


def four_bits(rules: MemoryRules) -> MemoryRules:
    """The rules for a transformer in 4 bits."""
    return replace(rules, weight_precision="nf4", denoiser_formats=rules.formats & {"nf4"})


def four_bits_pay(device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules) -> bool:
    """Whether the transformer in 4 bits makes a prediction that much faster than in 8 or more, or saves reading weights
    from the disk in every prediction. In small tiles."""

    def cost(allowed: MemoryRules) -> tuple[float, int]:
        search = _in_small_tiles(device, models, workload, allowed)
        best = search.fastest()
        return (best[0][0], search.host_use(best[1]).reread) if best else (math.inf, 0)

    (four, four_reread), (eight, eight_reread) = cost(four_bits(rules)), cost(replace(rules, weight_precision="fp8"))
    return four <= WORTH_ROUNDING * eight or four_reread < eight_reread


def everything_stays(device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules) -> bool:
    """Whether the device holds all models as they are, beside the activations of the workload in small tiles."""
    search = _in_small_tiles(device, models, workload, rules)
    choice = tuple(search.option(name, Placement("resident", one.dtype)) for name, one in models.components.items())
    return search.fits(choice, search.demand(choice)[0])


def _in_small_tiles(device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules) -> PlanSearch:
    tile = upscale_tile_sides(workload, device.type == "cpu")[-1]
    return PlanSearch(device, models, replace(workload, upscale_tile=tile), rules)


def _automatic(rules: MemoryRules, level: str, why: str) -> tuple[MemoryRules, str]:
    return replace(rules, weight_precision=level), f"weight_precision 'auto' means '{level}' here: {why}."
