"""Decides, once and from numbers, where every model lives: :func:`plan_memory`. Pure, without torch; bytes in,
decisions out.

Every combination of placements of the six models is tried (a few thousand); the fastest that fits is taken. More memory
only adds combinations, so it never makes a plan slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import product
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

from backend.core.errors import SettingsError, UserError, nearest
from backend.planning.activations import Step, Workload, halved_tiles, prediction_steps
from backend.planning.costs import KINDS, DeviceMemory, Kind, Placement, moved_bytes, passing_bytes, step_seconds
from backend.planning.model_specs import Component, ModelSizes

__all__ = [
    "DeviceMemory",
    "MemoryPlan",
    "MemoryPlanError",
    "MemoryRules",
    "ModelSizes",
    "Placement",
    "VRAMState",
    "Workload",
    "plan_memory",
    "predicted_peak",
]

GIB = 2**30
MOST_DETAILS = 8
"""Details in one batch at most: a large batch gains little more, and is what is lost when memory is short after all."""
WEIGHT_PRECISIONS = ("exact", "fp8", "nf4")
"""How far weights may be rounded; each allows what stands before it."""
ROUNDING: Mapping[str, int] = MappingProxyType({"fp8": 1, "fp8_compute": 1, "nf4": 2})
LOADED_FORMATS = frozenset({"fp8", "nf4"})
"""What ``backend/offload/quantized_linear.py`` loads. "fp8_compute" (matrix products in fp8) is priced, for the day
it is loaded too."""
FP8_COMPUTE_CAPABILITY = (8, 9)
SECONDS_DIGITS = 1
"""Plans that differ by less than a tenth of a second count as equally fast: the estimates are not better than that, and
no weight shall be rounded for a millisecond."""


class VRAMState(Enum):
    """The name that WebUI users know for how a device is used."""

    DISABLED = auto()
    """No GPU: everything is in host memory."""
    NO_VRAM = auto()
    """A model arrives layer by layer."""
    LOW_VRAM = auto()
    """Not all models stay: they overrun their share by more than the rules tolerate."""
    NORMAL_VRAM = auto()
    HIGH_VRAM = auto()
    """A large card that keeps its models."""
    SHARED = auto()
    """The GPU computes in host memory: moving a model would free nothing."""


@dataclass(frozen=True)
class MemoryRules:
    """The rules of the Flux predictor's document; its GB are GiB, as torch and nvidia-smi count.

    A card of more than ``large_card_bytes`` sets ``large_inference_share`` of its memory aside for inference and the
    rest for models, uses at most ``large_used_share``, ``large_reserve_bytes`` of it kept back, and becomes LOW_VRAM
    only when models overrun their share by more than ``large_overrun_bytes``. Other devices set ``inference_share``
    aside and keep back ``context_bytes`` for the driver's context and ``fragmentation_share`` of their memory (1.25 GiB
    of 50, the document's figure). ``weight_precision`` is one of :data:`WEIGHT_PRECISIONS`, ``formats`` are the ways of
    rounding that are at hand. At most ``host_share`` of the host's memory is filled with models that are not on the
    device, at most ``pinned_share`` is pinned.

    Raises SettingsError for an unknown weight_precision.
    """

    large_card_bytes: int = 50 * GIB
    large_inference_share: float = 0.25
    large_used_share: float = 0.87
    large_reserve_bytes: int = 2 * GIB
    large_overrun_bytes: int = GIB
    inference_share: float = 0.6
    context_bytes: int = GIB // 2
    fragmentation_share: float = 0.015
    weight_precision: str = "exact"
    formats: frozenset[str] = LOADED_FORMATS
    host_share: float = 0.75
    pinned_share: float = 0.5

    def __post_init__(self) -> None:
        if self.weight_precision not in WEIGHT_PRECISIONS:
            raise SettingsError(
                f"weight_precision must be one of {', '.join(WEIGHT_PRECISIONS)}, not "
                f"'{self.weight_precision}'{nearest(self.weight_precision, WEIGHT_PRECISIONS)}"
            )


class MemoryPlanError(UserError):
    """The workload fits in no way. ``missing_bytes`` is what the leanest way lacks; ``field`` the input or setting
    to change."""

    def __init__(self, message: str, missing_bytes: int, field: str) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
        self.field = field


@dataclass(frozen=True)
class MemoryPlan:
    """Where every model lives, and what that costs.

    Attributes:
        inference_bytes: The share set aside for inference: by the rules, or what the workload needs when that is more.
        model_bytes: The rest of the device. Models may borrow what a workload leaves unused of the inference share.
        reserve_bytes: Kept back for the driver's context and fragmentation.
        max_detail_batch: How many details may be repainted in one batch: as many as fit beside the models, at most 8.
        upscale_tile: Side in pixels of the upscaler's tiles: the workload's, or a half or a quarter of it where memory
            is short.
        pin_bytes: Host memory to pin for models that are not resident.
        use_streams: Whether copies run beside the computation.
        predicted_peak_bytes: What the device holds at the worst moment of a prediction: the resident models, the models
            in use,
            their activations, and the reserve. An emulated device has no reserve.
        predicted_seconds: A warm prediction with a new prompt, to a tenth: computation and copies, without files and
            image formats.
        reasons: Why, one sentence each.
    """

    state: VRAMState
    inference_bytes: int
    model_bytes: int
    reserve_bytes: int
    placements: Mapping[str, Placement]
    max_detail_batch: int
    upscale_tile: int
    pin_bytes: int
    use_streams: bool
    predicted_peak_bytes: int
    predicted_seconds: float
    reasons: tuple[str, ...]


def plan_memory(
    device: DeviceMemory, models: ModelSizes, workload: Workload, rules: MemoryRules = MemoryRules()
) -> MemoryPlan:
    """The fastest plan that fits the device and the host and rounds weights no further than ``rules.weight_precision``
    allows.

    Of equally fast plans it is the one that rounds least, then the one that makes the fewest concessions. Raises
    :class:`MemoryPlanError` when none fits.
    """
    tiles = halved_tiles(workload.upscale_tile) if workload.scale > 1 or workload.hires else [workload.upscale_tile]
    searches = [
        _Search(device, models, replace(workload, upscale_tile=tile), rules, index) for index, tile in enumerate(tiles)
    ]
    found = [(best, search) for search in searches if (best := search.fastest())]
    if not found:
        raise searches[-1].error()
    (_, choice), search = min(found, key=lambda one: one[0][0])
    return search.plan(choice)


def predicted_peak(
    device: DeviceMemory, models: ModelSizes, workload: Workload, placements: Mapping[str, Placement]
) -> int:
    """What the device holds at the worst moment of the workload, in bytes, when every model lives as ``placements``
    says."""
    search = _Search(device, models, workload, MemoryRules())
    return search.demand(tuple(search.option(name, placements[name]) for name in models.components))[0] + search.reserve


def is_large(device: DeviceMemory, rules: MemoryRules) -> bool:
    return device.kind in ("cuda", "emulated") and device.total_bytes > rules.large_card_bytes


def usable_bytes(device: DeviceMemory, rules: MemoryRules) -> tuple[int, int]:
    """What weights and activations may fill, and the reserve beside it, in bytes.

    It grows with the device's memory everywhere: where 87% of a large card is less than all of the largest other card,
    the latter holds.
    """
    emulated = device.kind == "emulated"
    ordinary = min(device.total_bytes, rules.large_card_bytes) if is_large(device, rules) else device.total_bytes
    reserve = 0 if emulated else rules.context_bytes + int(rules.fragmentation_share * ordinary)
    usable = ordinary - reserve
    if is_large(device, rules):
        large_reserve = 0 if emulated else rules.large_reserve_bytes
        usable, reserve = max(
            (usable, reserve), (int(rules.large_used_share * device.total_bytes) - large_reserve, large_reserve)
        )
    return usable - device.held_bytes, reserve


class _Option(NamedTuple):
    """One model in one placement: bytes that always stand on the device, bytes only while in use, bytes waiting in
    host memory."""

    name: str
    placement: Placement
    standing: int
    passing: int
    waiting: int
    seconds: float


_Choice = tuple[_Option, ...]
"""One option for every model, in the order of the family's components."""

_Rank = tuple[float, ...]
"""Orders choices: seconds, rounded models, concessions, peak bytes; the least is the best."""


class _Search:
    """All combinations of placements, what each needs and how long it takes. ``halvings`` of the upscaler's tile are
    a concession."""

    def __init__(
        self, device: DeviceMemory, models: ModelSizes, workload: Workload, rules: MemoryRules, halvings: int = 0
    ) -> None:
        self.device, self.models, self.workload, self.rules, self.halvings = device, models, workload, rules, halvings
        self.steps = prediction_steps(workload, models)
        self.usable, self.reserve = usable_bytes(device, rules)
        self.has_own_memory = device.kind in ("cuda", "emulated")
        self.host_limit = int(device.host_bytes * rules.host_share)
        # elsewhere than on CUDA no copy is faster for being pinned
        self.pin_limit = int(device.host_bytes * rules.pinned_share) if device.kind == "cuda" else device.host_bytes
        # of the steps that borrow the same models only the hungriest matters for the peak
        order = list(models.components)
        self.demands: list[tuple[Step, list[int]]] = []
        for names in dict.fromkeys(step.components for step in self.steps):
            alike = [step for step in self.steps if step.components == names]
            hungriest = replace(
                max(alike, key=lambda step: step.memory), tiled_memory=max(step.tiled_memory for step in alike)
            )
            self.demands.append((hungriest, [order.index(name) for name in names]))

    def option(self, name: str, placement: Placement) -> _Option:
        component = self.models.components[name]
        size, stays = component.size(placement.dtype), placement.kind == "resident"
        standing, waiting = (size, 0) if stays else (0, size)
        return _Option(
            name,
            placement,
            standing,
            passing_bytes(placement, component),
            waiting,
            self.option_seconds(name, placement, pinned=1),
        )

    def options(self, name: str, component: Component) -> list[_Option]:
        """What one model may do on this device, under these rules."""
        rank, cuda = WEIGHT_PRECISIONS.index(self.rules.weight_precision), self.device.kind == "cuda"
        dtypes = [component.dtype]
        if component.blocks and component.rounds:  # the two large models; rounding the others saves next to nothing
            dtypes += ["fp8"] * (rank >= 1 and component.dtype != "fp8") + ["nf4"] * (rank >= 2)
            if rank >= 1 and cuda and name == self.models.denoiser and self.computes_fp8:
                dtypes.append("fp8_compute")
            dtypes = [dtype for dtype in dtypes if dtype == component.dtype or dtype in self.rules.formats]
        # what computes in fp8 is moved as a whole only; layer by layer is for the checkpoint's own dtype
        streamed: dict[Kind, list[str]] = {
            "block offload": [component.dtype, "fp8", "nf4"],
            "layer offload": [component.dtype],
        }
        kinds = KINDS[: 4 if component.blocks else 2] if self.has_own_memory else KINDS[:1]
        pairs = [(kind, dtype) for kind, dtype in product(kinds, dtypes) if dtype in streamed.get(kind, dtypes)]
        return [
            self.option(name, Placement(kind, dtype, tiled))
            for kind, dtype in pairs
            for tiled in ((False, True) if name == "vae" else (False,))
        ]

    @property
    def computes_fp8(self) -> bool:
        return (self.device.capability or (0, 0)) >= FP8_COMPUTE_CAPABILITY

    def choices(self) -> Iterator[_Choice]:
        return product(*(self.options(name, component) for name, component in self.models.components.items()))

    def demand(self, choice: _Choice) -> tuple[int, Step]:
        """Bytes of weights and activations at the worst moment, and the step at which that is."""
        passing, worst = max(
            (
                (sum(choice[i].passing for i in used) + activations(step, choice[used[-1]].placement), step)
                for step, used in self.demands
            ),
            key=itemgetter(0),
        )
        return sum(option.standing for option in choice) + passing, worst

    def seconds(self, choice: _Choice) -> float:
        waiting = sum(option.waiting for option in choice)
        if waiting <= self.pin_limit:
            return sum(option.seconds for option in choice)
        return sum(self.option_seconds(option.name, option.placement, self.pin_limit / waiting) for option in choice)

    def option_seconds(self, name: str, placement: Placement, pinned: float) -> float:
        component = self.models.components[name]
        return sum(
            step_seconds(
                placement,
                component,
                step,
                moved_bytes(placement, component, step, previous),
                name == step.components[-1],
                self.device,
                pinned,
            )
            for step, previous in zip(self.steps, (None, *self.steps))
            if name in step.components
        )

    def fastest(self) -> tuple[_Rank, _Choice] | None:
        """The best choice that fits, with its rank."""
        best: tuple[_Rank, _Choice] | None = None
        for choice in self.choices():
            peak = self.demand(choice)[0]
            if peak > self.usable or sum(option.waiting for option in choice) > self.host_limit:
                continue
            rounded = sum(ROUNDING.get(option.placement.dtype, 0) for option in choice)
            concessions = (
                sum(KINDS.index(option.placement.kind) + option.placement.tiled for option in choice) + self.halvings
            )
            key = (round(self.seconds(choice), SECONDS_DIGITS), rounded, concessions, peak)
            if best is None or key < best[0]:
                best = key, choice
        return best

    def error(self) -> MemoryPlanError:
        """What the leanest combination lacks, where, and what to change."""

        def lacks(choice: _Choice) -> tuple[int, int]:
            return max(0, self.demand(choice)[0] - self.usable), max(
                0, sum(option.waiting for option in choice) - self.host_limit
            )

        leanest = min(self.choices(), key=lambda choice: sum(lacks(choice)))
        (device, host), (_, step) = lacks(leanest), self.demand(leanest)
        missing, where = max((device, "device"), (host, "host"))
        offered = [weight_precision for weight_precision in WEIGHT_PRECISIONS if weight_precision in self.rules.formats]
        coarser = [
            weight_precision
            for weight_precision in offered
            if WEIGHT_PRECISIONS.index(weight_precision) > WEIGHT_PRECISIONS.index(self.rules.weight_precision)
        ]
        allow = f"allow weight_precision '{coarser[0]}', or " if coarser else ""
        if host >= device or missing >= step.memory or not step.lower:
            field, advice = (
                "weight_precision" if allow else "model",
                f"{allow}choose a smaller model or a machine with more {where} memory",
            )
            needs = "the models need more than there is"
        else:
            field, advice = step.lower, f"lower {step.lower}"
            needs = f"the step '{step.stage}' needs {format_bytes(step.memory)} for this request beside the models"
        return MemoryPlanError(
            f"{field}: {format_bytes(missing)} ({missing} bytes) of {where} memory are missing: {needs}; {advice}",
            missing,
            field,
        )

    def plan(self, choice: _Choice) -> MemoryPlan:
        device, rules, large = self.device, self.rules, is_large(self.device, self.rules)
        share = rules.large_inference_share if large else rules.inference_share
        need = max(activations(step, choice[used[-1]].placement) for step, used in self.demands)
        inference = max(int(share * device.total_bytes), need)
        overrun = sum(option.standing + option.waiting for option in choice) - (device.total_bytes - inference)
        pin = min(self.pin_limit, sum(option.waiting for option in choice)) if device.kind == "cuda" else 0
        return MemoryPlan(
            state=self.state({option.placement.kind for option in choice}, overrun),
            inference_bytes=inference,
            model_bytes=device.total_bytes - inference,
            reserve_bytes=self.reserve,
            placements=MappingProxyType({option.name: option.placement for option in choice}),
            max_detail_batch=self.max_detail_batch(choice),
            upscale_tile=self.workload.upscale_tile,
            pin_bytes=pin,
            use_streams=device.kind == "cuda",
            predicted_peak_bytes=self.demand(choice)[0] + self.reserve,
            predicted_seconds=round(self.seconds(choice), SECONDS_DIGITS),
            reasons=(
                *self.split_reasons(share, need, overrun),
                *self.placement_reasons(choice),
                *self.cost_reasons(choice, pin),
            ),
        )

    def max_detail_batch(self, choice: _Choice) -> int:
        denoising = [
            step for step in self.steps if step.stage == "detail" and step.components == (self.models.denoiser,)
        ]
        if not denoising:
            return 1
        denoiser = choice[list(self.models.components).index(self.models.denoiser)]
        room = self.usable - sum(option.standing for option in choice) - denoiser.passing
        return min(MOST_DETAILS, max(1, room // denoising[0].memory) * self.workload.outputs)

    def state(self, kinds: set[Kind], overrun: int) -> VRAMState:
        if not self.has_own_memory:
            return VRAMState.SHARED if self.device.kind == "unified" else VRAMState.DISABLED
        if "layer offload" in kinds:
            return VRAMState.NO_VRAM
        large = is_large(self.device, self.rules)
        if kinds != {"resident"} and overrun > (self.rules.large_overrun_bytes if large else 0):
            return VRAMState.LOW_VRAM
        return VRAMState.HIGH_VRAM if large else VRAMState.NORMAL_VRAM

    def split_reasons(self, share: float, need: int, overrun: int) -> Iterator[str]:
        total, rules = self.device.total_bytes, self.rules
        if not self.has_own_memory:
            yield (
                f"Models and pictures share {format_bytes(total)} of host memory; moving a model would free nothing, "
                "so every model stays."
            )
        else:
            size = f"{'over' if is_large(self.device, rules) else 'up to'} {rules.large_card_bytes / GIB:.0f} GiB"
            aside = f"{share:.0%} ({format_bytes(int(share * total))})"
            if need > share * total:
                yield (
                    f"This request needs {format_bytes(need)} for inference, more than the {aside} that a device "
                    f"{size} sets aside, so the need counts."
                )
            else:
                yield (
                    f"A device {size} sets {aside} aside for inference and the rest for models; this request needs "
                    f"{format_bytes(need)} of it."
                )
            if overrun > 0:
                yield (
                    f"All models together are {format_bytes(overrun)} over their share; they may borrow what "
                    "inference leaves unused."
                )
        held = f"; {format_bytes(self.device.held_bytes)} are held by others" if self.device.held_bytes else ""
        kept = (
            f"{format_bytes(self.reserve)} are kept back for the driver and fragmentation"
            if self.reserve
            else "nothing is kept back"
        )
        yield f"Models and activations may fill {format_bytes(self.usable)} of {format_bytes(total)}: {kept}{held}."

    def placement_reasons(self, choice: _Choice) -> Iterator[str]:
        how = {
            "model offload": "is copied to the device when a step needs it and dropped afterwards",
            "block offload": "streams through the device block by block, two at a time",
            "layer offload": "passes through the device layer by layer, which is slow",
        }
        for index, (name, placement, *_) in enumerate(choice):
            component = self.models.components[name]
            size = format_bytes(component.size(placement.dtype))
            if placement.kind != "resident":
                stays = self.option(name, Placement("resident", placement.dtype, placement.tiled))
                over = self.demand((*choice[:index], stays, *choice[index + 1 :]))[0] - self.usable
                yield (
                    f"{name} ({size} in {placement.dtype}) {how[placement.kind]}: to stay it would need "
                    f"{format_bytes(over)} more."
                )
            if placement.dtype != component.dtype:
                yield (
                    f"{name} is rounded to {placement.dtype}, which weight_precision '{self.rules.weight_precision}' "
                    f"allows: {format_bytes(component.size())} become {size}."
                )
            if placement.tiled:
                yield (
                    f"{name} works in tiles of {self.models.vae_tile} pixels: less memory, a little more time, and "
                    "pixels that differ slightly."
                )
        if self.halvings:
            yield (
                f"The upscaler works in tiles of {self.workload.upscale_tile} pixels: less memory, and more time for "
                "what neighbouring tiles share."
            )
        stay = [option.name for option in choice if option.placement.kind == "resident"]
        if stay:
            yield f"{', '.join(stay)} stay{'s' * (len(stay) == 1)} on the device between predictions."
        if (
            self.rules.weight_precision != "exact"
            and "fp8_compute" in self.rules.formats
            and self.device.kind == "cuda"
            and not self.computes_fp8
        ):
            yield "fp8 saves memory but no computation here: that needs compute capability 8.9 or newer."

    def cost_reasons(self, choice: _Choice, pin: int) -> Iterator[str]:
        waiting = sum(option.waiting for option in choice)
        if waiting:
            still = sum(
                self.option(name, Placement("resident", placement.dtype, placement.tiled)).seconds
                for name, placement, *_ in choice
            )
            pinned = f", {format_bytes(pin)} of it pinned," if self.device.kind == "cuda" else ""
            yield (
                f"{format_bytes(waiting)} of models wait in host memory{pinned} and moving them costs "
                f"{self.seconds(choice) - still:.2f} s a prediction."
            )
        yield f"The memory for activations is {self.models.costs_source}."


def activations(step: Step, placement: Placement) -> int:
    """Bytes of activations of a step, whose working model is placed so."""
    return step.tiled_memory if placement.tiled else step.memory


def format_bytes(count: int) -> str:
    """Bytes as people read them, in powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
