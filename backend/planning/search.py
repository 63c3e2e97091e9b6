"""Tries every combination of placements and finds the fastest that fits. Pure, without torch.

More memory only adds combinations, so it never makes a plan slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from operator import attrgetter, itemgetter, le
from typing import NamedTuple

from backend.planning.activations import Step, Workload, prediction_steps
from backend.planning.costs import (
    FEWEST_STREAMED,
    KINDS,
    DeviceMemory,
    Kind,
    Placement,
    moved_bytes,
    passing_bytes,
    scratch_bytes,
    standing_bytes,
    step_seconds,
    waiting_bytes,
)
from backend.planning.model_specs import BYTES_PER_PARAMETER, PACKED, Component, ModelSpec
from backend.planning.rules import ROUNDING, UNROUNDED, MemoryRules, computes_fp8, has_own_memory, usable_bytes

MOST_OF_PACKED = 0.9
"""Weights that their file has quantized are quantized anew where that leaves at most so much of their bytes."""
SECONDS_DIGITS = 1
"""Plans that differ by less than a tenth of a second count as equally fast: the estimates are not better than that, and
no weight should be rounded to save a millisecond."""


ROUNDING_ERROR = 1e-6
"""Seconds, more than sums of the same numbers differ by their order."""


class Option(NamedTuple):
    """One model in one placement.

    ``standing`` bytes are always on the device, ``passing`` bytes only while the model is in use, ``waiting`` bytes are
    on the host. ``anonymous`` of them are no pages of a file, so the host must have memory for them. ``seconds`` is
    what it adds to a prediction when all of ``waiting`` is pinned.
    """

    name: str
    placement: Placement
    standing: int
    passing: int
    waiting: int
    anonymous: int
    seconds: float


STANDING: Callable[[Option], int] = attrgetter("standing")
WAITING: Callable[[Option], int] = attrgetter("waiting")
ANONYMOUS: Callable[[Option], int] = attrgetter("anonymous")
SECONDS: Callable[[Option], float] = attrgetter("seconds")
"""A search adds them up a million times."""


class HostUse(NamedTuple):
    """Bytes of the weights that wait on the host: pinned, and read from the disk again whenever they are needed."""

    waiting: int
    pinned: int
    reread: int


Choice = tuple[Option, ...]
"""One option for every model, in the order of the family's components."""

Worth = Callable[[float, int], bool]
"""Whether a choice may be the best that takes at least so many seconds and so many standing bytes."""

Rank = tuple[float, int, int, int]
"""Seconds, how much is rounded, concessions, peak bytes: the least is the best."""


class PlanSearch:
    """All combinations of placements for one workload: what each needs and how long it takes.

    ``halvings`` is how often the workload's upscaler tile was halved to save memory. Each is a concession, as is every
    step down in a model's placement and an autoencoder that works in tiles.
    """

    def __init__(
        self, device: DeviceMemory, models: ModelSpec, workload: Workload, rules: MemoryRules, halvings: int = 0
    ) -> None:
        self.device, self.models, self.workload, self.rules, self.halvings = device, models, workload, rules, halvings
        self.steps = prediction_steps(workload, models)
        self.usable, self.reserve = usable_bytes(device, rules)
        self.remembered = workload.cached_prompts * models.prompt_bytes + workload.lora_bytes
        self.host_limit = int(device.host_bytes * rules.host_share)
        # where the device computes in host memory its pictures are there too
        self.pictures = workload.picture_bytes
        self.remembered += 0 if has_own_memory(device) else self.pictures
        # only on CUDA is a copy faster for being pinned
        self.pin_limit = int(device.host_bytes * rules.pinned_share) if device.type == "cuda" else device.host_bytes
        # of the steps that use the same models only the one that needs most matters for the peak
        order = list(models.components)
        self.demands: list[tuple[Step, list[int]]] = []
        for names in dict.fromkeys(step.components for step in self.steps):
            alike = [step for step in self.steps if step.components == names]
            largest = replace(
                max(alike, key=lambda step: step.memory), tiled_memory=max(step.tiled_memory for step in alike)
            )
            self.demands.append((largest, [order.index(name) for name in names]))

    def fastest(self, known: Rank | None = None) -> tuple[Rank, Choice] | None:
        """The best choice that fits, with its rank; None when none fits, or none is better than the one ``known``."""
        best: tuple[Rank, Choice] | None = None
        least = known

        def worth(seconds: float, standing: int) -> bool:
            """Whether a choice that takes at least so much may be the best."""
            return standing <= self.usable and not (
                least and round(seconds - ROUNDING_ERROR, SECONDS_DIGITS) > least[0]
            )

        for choice in self._choices(worth):
            # most are out without a look at every step
            if not worth(sum(map(SECONDS, choice)), sum(map(STANDING, choice))):
                continue
            peak = self.demand(choice)[0]
            if self.fits(choice, peak) and (not least or self.rank(choice, peak) < least):
                least = self.rank(choice, peak)
                best = least, choice
        return best

    def fits(self, choice: Choice, peak: int) -> bool:
        return peak <= self.usable and sum(map(ANONYMOUS, choice)) + self.pictures <= self.host_limit

    def rank(self, choice: Choice, peak: int) -> Rank:
        placements = [option.placement for option in choice]
        rounded = sum(ROUNDING.get(placement.dtype, 0) for placement in placements)
        concessions = sum(KINDS.index(placement.kind) + placement.tiled for placement in placements) + self.halvings
        return round(self.seconds(choice), SECONDS_DIGITS), rounded, concessions, peak

    def missing(self, choice: Choice) -> tuple[int, int]:
        """Bytes that the choice lacks on the device and on the host; 0 and 0 when it fits."""
        anonymous = sum(map(ANONYMOUS, choice)) + self.pictures
        return max(0, self.demand(choice)[0] - self.usable), max(0, anonymous - self.host_limit)

    def _choices(self, worth: Worth) -> Iterator[Choice]:
        """Every combination that may be ``worth`` it, and with a partial denoiser those that fit the device."""
        options = [self.options(name, component) for name, component in self.models.components.items()]
        yield from combinations(options, worth)
        if self.rules.partial and self.models.denoiser in self.models.components and has_own_memory(self.device):
            yield from self._partial_choices(options, worth)

    def _partial_choices(self, options: list[list[Option]], worth: Worth) -> Iterator[Choice]:
        """The denoiser, which runs in every step, keeps as many of its blocks as the other models leave room for."""
        name = self.models.denoiser
        index, component = list(self.models.components).index(name), self.models.components[name]
        most = len(component.blocks) - FEWEST_STREAMED
        if most < 1:
            return
        placements = [
            [Placement("partial", dtype, kept_blocks=kept) for kept in range(most, 0, -1)]
            for dtype in self._dtypes(name, component)
        ]
        needs = [
            [(standing_bytes(one, component), passing_bytes(one, component), one) for one in of] for of in placements
        ]
        option = cache(partial(self.option, name))
        least = min(map(SECONDS, options[index]))  # resident models are the fastest
        for others in combinations([*options[:index], *options[index + 1 :]], worth, least):
            before, after = others[:index], others[index:]
            # the same beside every dtype: it needs no tiles
            with_it, without_it = self._peaks_beside((*before, options[index][0], *after), index)
            room_with, room_without = self.usable - with_it, self.usable - without_it
            for of_dtype in needs:
                for standing, passing, placement in of_dtype:
                    if standing + passing <= room_with and standing <= room_without:
                        yield (*before, option(placement), *after)
                        break

    def _peaks_beside(self, choice: Choice, index: int) -> tuple[int, int]:
        """What the models beside the one at ``index`` and all activations need, in steps with it and without it."""
        standing = sum(map(STANDING, choice)) - choice[index].standing + self.remembered
        peaks = [0, 0]
        for step, used in self.demands:
            passing = activations(step, choice[used[-1]].placement)
            for i in used:
                if i != index:
                    passing += choice[i].passing
            which = index not in used
            peaks[which] = max(peaks[which], passing)
        return standing + peaks[0], standing + peaks[1]

    def leanest(self) -> Choice:
        """The combination that lacks least. Of each model only the options count that need least of something."""
        lists = [needing_least(self.options(name, component)) for name, component in self.models.components.items()]
        return min(product(*lists), key=lambda choice: sum(self.missing(choice)))

    def options(self, name: str, component: Component) -> list[Option]:
        """The placements that one model may have on this device, under these rules, whatever the others have."""
        dtypes = self._dtypes(name, component)
        # layer by layer is for the checkpoint's own dtype
        streamed: dict[Kind, list[str]] = {
            "block offload": [component.dtype, PACKED, "fp8", "fp8_compute", "nf4"],
            "layer offload": [component.dtype],
        }
        whole: tuple[Kind, ...] = ("resident", "model offload")
        kinds = (*whole, *streamed) if component.blocks else whole
        if not has_own_memory(self.device):
            kinds = ("resident",)
        pairs = [(kind, dtype) for kind, dtype in product(kinds, dtypes) if dtype in streamed.get(kind, dtypes)]
        return [
            self.option(name, Placement(kind, dtype, tiled))
            for kind, dtype in pairs
            for tiled in ((False, True) if name == "vae" else (False,))
        ]

    def _dtypes(self, name: str, component: Component) -> list[str]:
        own, rank = component.dtype, self.rules.precision_rank
        if not (component.blocks and component.rounds):  # rounding the small models saves next to nothing
            return [own]
        rounded = ["fp8"] * (rank >= 1 and own != "fp8") + ["nf4"] * (rank >= 2)
        if rank >= 1 and name == self.models.denoiser and computes_fp8(self.device, own):
            rounded.append("fp8_compute")
        rounded = [dtype for dtype in rounded if dtype in self.rules.formats]
        if component.packed:  # what the file has rounded is not rounded again for nothing
            if self.rules.weight_precision == "gguf":
                return [PACKED]
            least = MOST_OF_PACKED * component.packed
            rounded = [one for one in rounded if one == "fp8_compute" or BYTES_PER_PARAMETER[one] < least]
            return [own, PACKED, *rounded]
        wanted = self.rules.denoiser_formats.intersection(rounded)
        if name == self.models.denoiser and wanted and own in UNROUNDED:
            return [dtype for dtype in rounded if dtype in wanted]
        return [own, *rounded]

    def option(self, name: str, placement: Placement) -> Option:
        component = self.models.components[name]
        waiting = waiting_bytes(placement, component)
        return Option(
            name,
            placement,
            standing_bytes(placement, component),
            passing_bytes(placement, component),
            waiting,
            0 if component.is_mapped(placement.dtype) else waiting,
            self._option_seconds(name, placement, pinned=1),
        )

    def demand(self, choice: Choice) -> tuple[int, Step]:
        """Bytes of weights and activations at the worst moment, and the step at which that is."""
        passing, worst = max(
            (
                (sum([choice[i].passing for i in used]) + activations(step, choice[used[-1]].placement), step)
                for step, used in self.demands
            ),
            key=itemgetter(0),
        )
        return sum(map(STANDING, choice)) + self.remembered + passing, worst

    def inference_need(self, choice: Choice) -> int:
        """Bytes of activations of the step that needs most."""
        return max(activations(step, choice[used[-1]].placement) for step, used in self.demands)

    def step_bytes(self, choice: Choice) -> dict[str, int]:
        """For every model the bytes of activations of the largest step that needs it, and of the weights that it
        dequantizes meanwhile; 0 where no step does."""
        most = dict.fromkeys(self.models.components, 0)
        for step, used in self.demands:
            needed = activations(step, choice[used[-1]].placement)
            for index in used:
                name, placement = choice[index].name, choice[index].placement
                most[name] = max(most[name], needed + scratch_bytes(placement, self.models.components[name]))
        return most

    def seconds(self, choice: Choice) -> float:
        """A warm prediction with a new prompt."""
        use = self.host_use(choice)
        if use.pinned >= use.waiting:
            return sum(map(SECONDS, choice))
        pinned, reread = use.pinned / use.waiting, use.reread / use.waiting
        return sum(self._option_seconds(option.name, option.placement, pinned, reread) for option in choice)

    def host_use(self, choice: Choice) -> HostUse:
        """How the weights that wait are kept: as many are pinned as may be, the others are pages of files, which stay
        in memory as long as all of them have room there."""
        waiting, anonymous = sum(map(WAITING, choice)), sum(map(ANONYMOUS, choice))
        if waiting <= self.pin_limit and not anonymous:
            return HostUse(waiting, waiting, 0)
        # what is pinned of a file is a copy of its own, beside the anonymous bytes
        pinned = min(waiting, self.pin_limit, max(anonymous, self.host_limit - anonymous))
        pages = min(waiting - anonymous, waiting - pinned)
        # pages are dropped in the order in which they were used, so where some have no room none is found again
        room = self.device.host_bytes - pinned - anonymous
        return HostUse(waiting, pinned, pages if pages > room else 0)

    def _option_seconds(self, name: str, placement: Placement, pinned: float, reread: float = 0) -> float:
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
                reread,
            )
            for step, previous in zip(self.steps, (None, *self.steps))
            if name in step.components
        )


def combinations(options: Sequence[Sequence[Option]], worth: Worth, seconds: float = 0) -> Iterator[Choice]:
    """``product(*options)``, in its order, without those that ``worth`` refuses, which is asked about seconds and
    standing bytes that a choice has at least. ``seconds`` come on top of all."""
    rest = [(0.0, 0)]
    for of_model in reversed(options):
        rest.insert(0, (rest[0][0] + min(map(SECONDS, of_model)), rest[0][1] + min(map(STANDING, of_model))))

    def extended(begun: Choice, seconds: float, standing: int) -> Iterator[Choice]:
        if len(begun) == len(options):
            yield begun
            return
        least_seconds, least_standing = rest[len(begun) + 1]
        for option in options[len(begun)]:
            taken, held = seconds + option.seconds, standing + option.standing
            if worth(taken + least_seconds, held + least_standing):
                yield from extended((*begun, option), taken, held)

    return extended((), seconds, 0)


def needing_least(options: Sequence[Option]) -> list[Option]:
    """Those options that no other one undercuts in everything that they need."""
    needs = {
        option: (option.standing, option.passing, option.anonymous, not option.placement.tiled) for option in options
    }
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: needs[option]):
        if not any(all(map(le, needs[one], needs[option])) for one in kept):
            kept.append(option)
    return kept


def activations(step: Step, placement: Placement) -> int:
    """Bytes of activations of a step whose working model is placed so."""
    return step.tiled_memory if placement.tiled else step.memory
