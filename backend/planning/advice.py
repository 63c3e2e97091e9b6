"""What to change where no plan fits. Every change that is named was tried: with it there is a plan. Pure, without
torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from backend.core.units import parse_bytes
from backend.planning.activations import Workload
from backend.planning.costs import DeviceMemory
from backend.planning.model_specs import ModelSpec
from backend.planning.rules import LEVELS, MemoryRules, has_own_memory

SIDE_STEP, SMALLEST_SIDE = 64, 256
"""Pixels: sides that are advised are multiples of the one and not below the other."""
DEVICE, HOST, EMULATED = "device memory", "host memory", "emulate_vram"
ROUNDS = 12
"""How often memory is added until a plan fits. What is missing is exact but for the share that is kept back, so a few
times are enough."""


@dataclass(frozen=True)
class Case:
    """All that a plan depends on."""

    device: DeviceMemory
    models: ModelSpec
    workload: Workload
    rules: MemoryRules


@dataclass(frozen=True)
class Change:
    """Of an input, a setting or the machine, by its name, to a value in words."""

    field: str
    value: str

    def __str__(self) -> str:
        return WORDS.get(self.field, "set {field} to {value}").format(field=self.field, value=self.value)


WORDS: Mapping[str, str] = MappingProxyType(
    {
        "num_outputs": "lower num_outputs to {value}",
        "width and height": "lower width and height to {value}",
        "hr_scale": "lower the size of the Hires fix to {value}",
        "image": "make the image smaller, at most {value}",
        "adetailer": "turn adetailer {value}",
        DEVICE: "use a card with at least {value} of memory",
        HOST: "use a machine with at least {value} of free memory",
        EMULATED: "set emulate_vram to at least {value}",
    }
)
Missing = Callable[[Case], tuple[int, int]]
"""Bytes that the plan which lacks least lacks on the device and on the host."""
Tries = Iterator[tuple[Change, Case]]


def _outputs(case: Case) -> Tries:
    for outputs in range(case.workload.outputs - 1, 0, -1):
        yield Change("num_outputs", str(outputs)), replace(case, workload=replace(case.workload, outputs=outputs))


def _hires(case: Case) -> Tries:
    workload = case.workload
    if workload.hires:
        for width, height in _smaller(*workload.hires):
            if width > workload.width and height > workload.height:
                smaller = replace(workload, hires=(width, height))
                yield Change("hr_scale", f"{width}x{height}"), replace(case, workload=smaller)
        yield Change("hr_scale", "off"), replace(case, workload=replace(workload, hires=None))


def _size(case: Case) -> Tries:
    for width, height in _smaller(case.workload.width, case.workload.height):
        smaller = replace(case.workload, width=width, height=height)
        yield Change("width and height", f"{width}x{height}"), replace(case, workload=smaller)


def _finished(case: Case) -> Tries:
    for size in _smaller(*case.workload.finished) if case.workload.finished else ():
        yield Change("image", f"{size[0]}x{size[1]}"), replace(case, workload=replace(case.workload, finished=size))


def _smaller(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Sizes of the same shape, the largest first."""
    for steps in range((max(width, height) - 1) // SIDE_STEP, 0, -1):
        share = steps * SIDE_STEP / max(width, height)
        sides = [max(SIDE_STEP, int(side * share) // SIDE_STEP * SIDE_STEP) for side in (width, height)]
        if max(sides) >= SMALLEST_SIDE:
            yield sides[0], sides[1]


def _details(case: Case) -> Tries:
    if case.workload.detail_crop:
        yield Change("adetailer", "off"), replace(case, workload=replace(case.workload, detail_crop=0))


def _scale(case: Case) -> Tries:
    if case.workload.scale > 1:
        yield Change("scale", "1"), replace(case, workload=replace(case.workload, scale=1))


def _precision(case: Case) -> Tries:
    """ "auto" and "gguf" have nothing left to try."""
    if case.rules.weight_precision in LEVELS:
        for level in LEVELS[LEVELS.index(case.rules.weight_precision) + 1 :]:
            yield Change("weight_precision", level), replace(case, rules=replace(case.rules, weight_precision=level))


TRIES: Mapping[str, Callable[[Case], Tries]] = MappingProxyType(
    {
        "weight_precision": _precision,
        "num_outputs": _outputs,
        "hr_scale": _hires,
        "width and height": _size,
        "image": _finished,
        "adetailer": _details,
        "scale": _scale,
    }
)
"""How a field is changed, mildly first."""
REQUEST = (*TRIES, DEVICE, HOST)
"""What can be changed where a request is planned for."""
SET_UP = ("weight_precision", DEVICE, HOST)
"""What can be changed where the models' own size is planned for, on a real device."""
SET_UP_EMULATED = ("weight_precision", EMULATED, HOST)
"""The same on an emulated one."""


def advised_changes(case: Case, missing: Missing, fields: Sequence[str] = REQUEST, first: str = "") -> list[Change]:
    """Changes of these fields with which a plan fits: of ``first``, and of others too where it helps but is not enough;
    else of any one, in their order; else of several; else of the machine."""
    order = sorted((field for field in fields if field in TRIES), key=lambda field: field != first)
    tried = list(TRIES[first](case)) if first in order else []
    if tried and missing(tried[-1][1]) != missing(case) and (changes := _several(case, missing, order)):
        return changes
    for field in order:
        for change, changed in TRIES[field](case):
            if not any(missing(changed)):
                return [change]
    return _several(case, missing, order) or _machine(case, missing, fields)


def _several(case: Case, missing: Missing, order: Sequence[str]) -> list[Change]:
    """The last one as mild as it may be, and those before it as far as they go. Nothing where that is not enough."""
    changes: list[Change] = []
    lacking = missing(case)
    for field in order:
        tried = list(TRIES[field](case))
        if not tried or missing(tried[-1][1]) == lacking:
            continue
        if not any(missing(tried[-1][1])):
            return [*changes, next(change for change, changed in tried if not any(missing(changed)))]
        (change, case), lacking = tried[-1], missing(tried[-1][1])
        changes.append(change)
    return []


def _machine(case: Case, missing: Missing, fields: Sequence[str]) -> list[Change]:
    amounts: dict[str, str] = {}
    own_memory = has_own_memory(case.device)
    device_field = EMULATED if EMULATED in fields else DEVICE if own_memory else HOST
    for _ in range(ROUNDS):
        device, host = missing(case)
        if not device and not host:
            break
        total, host_bytes = case.device.total_bytes, case.device.host_bytes
        if device:
            others = 0 if own_memory else case.device.held_bytes
            amounts[device_field] = amount(total - others + math.ceil(device * 1.02))
            total = parse_bytes(amounts[device_field]) + others
        if host:
            amounts[HOST] = amount(host_bytes + math.ceil(host / case.rules.host_share))
            host_bytes = parse_bytes(amounts[HOST])
        free = total - case.device.held_bytes if case.device.held_bytes else None
        larger = replace(case.device, total_bytes=total, free_bytes=free, host_bytes=host_bytes)
        case = replace(case, device=larger)
    return [Change(field, value) for field, value in amounts.items()]


def amount(count: int) -> str:
    """Bytes as settings and options take them, rounded up: "5.1GB", "24.3MB"."""
    unit, name = (1e8, "GB") if count >= 1e9 else (1e5, "MB")
    return f"{math.ceil(count / unit) / 10:.1f}{name}"
