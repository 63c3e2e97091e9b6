"""When the device's memory is full: free what nobody uses, then try again in a way that needs less.

One fallback for all stages. Only out-of-memory errors are caught, in every spelling that torch, CUDA, cuDNN and cuBLAS
have for them; all others are raised unchanged.
"""

from __future__ import annotations

import gc
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

from backend.core.errors import UserError
from backend.core.units import format_bytes, parse_bytes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SPELLINGS = (
    "out of memory",  # CUDA's runtime and driver, torch's own allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "HOST_ALLOCATION_FAILED",  # cuDNN 9
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",
)


class OutOfMemory(UserError):
    """The device is too small for a request in every way that was tried."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device's or the host's memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(spelling in str(error) for spelling in SPELLINGS)


def missing_bytes(error: BaseException) -> int | None:
    """How many bytes more the operation needed, where the error says what it asked for and what was free, as torch's
    does."""
    wanted, free = (
        re.search(pattern, str(error))
        for pattern in (r"Tried to allocate ([\d.]+ \w+)", r"of which ([\d.]+ \w+) (?:is|are) free")
    )
    if not wanted or not free:
        return None
    amounts = [found[1].replace(" bytes", "") for found in (wanted, free)]
    return parse_bytes(amounts[0]) - (parse_bytes(amounts[1]) if float(amounts[1].split()[0]) else 0)


@dataclass(frozen=True)
class Strategy(Generic[Result]):
    """One way to do a step: ``way`` in words, and ``run``, which borrows the models that it needs itself.

    ``exact`` says that the result equals that of the strategy before to the bit; most save memory by another order of
    sums, which rounds differently.
    """

    way: str
    run: Callable[[], Result]
    exact: bool = False


@dataclass(frozen=True)
class Step:
    """A step of a request that may run out of memory.

    ``models`` are the names of those that it borrows. ``size`` is all that decides how much memory it needs: the sides
    and the number of the pictures, for example. ``lower`` names the input that makes it smaller, for the error.
    """

    name: str
    models: tuple[str, ...]
    size: tuple[int, ...]
    lower: str


class Placements(Protocol):
    """What can change the placements of models; see :class:`backend.model_cache_optimizer.ModelCache`.

    Both return what was changed in words, or nothing when there is nothing left to change.
    """

    def offload_others(self, names: Collection[str]) -> str: ...

    def stream(self, names: Collection[str]) -> str: ...


@dataclass
class OomFallback:
    """Runs steps with less memory when it is full. One serves all requests of a process.

    The pictures of a request must not depend on the requests before it. So a strategy is remembered only for the very
    same step (``learned``), and before one that changes pixels is tried all models that the step does not need leave
    the device: whether it is needed then depends on the request and the device alone. ``retries`` counts by step how
    often memory was full.
    """

    placements: Placements | None = None
    learned: dict[Step, int] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)

    def run(self, step: Step, strategies: Sequence[Strategy[Result]]) -> Result:
        """Runs the first strategy that fits, starting with the one that the same step needed last time.

        The strategies are ordered from the fastest to the one that needs the least memory. Raises :class:`OutOfMemory`
        when none fits, wherever the models are placed.
        """
        tried: list[str] = []
        index = min(self.learned.get(step, 0), len(strategies) - 1)
        while True:
            way = strategies[index].way
            try:
                result = strategies[index].run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason, missing = str(error).partition("\n")[0], missing_bytes(error)
            else:
                if index:
                    self.learned[step] = index
                return result
            # only here, outside of the handler, has the error let go of the tensors of its stack
            clear_memory()
            tried.append(way)
            self.retries[step.name] += 1
            logger.warning("%s: out of memory (%s): %s", step.name, way, reason)
            following = strategies[index + 1] if index + 1 < len(strategies) else None
            if following and following.exact:
                index += 1
            elif moved := self._offload_others(step):
                tried.append(moved)
                index = 0
            elif following:
                index += 1
            elif moved := self._stream(step):
                tried.append(moved)
                self.learned.pop(step, None)  # there is room again
                index = 0
            else:
                raise out_of_memory(step, tried, missing)

    def _offload_others(self, step: Step) -> str:
        return _logged(self.placements.offload_others(step.models)) if self.placements else ""

    def _stream(self, step: Step) -> str:
        return _logged(self.placements.stream(step.models)) if self.placements else ""


def _logged(change: str) -> str:
    if change:
        logger.warning("to make room on the device: %s", change)
    return change


def out_of_memory(step: Step, tried: Sequence[str], missing: int | None) -> OutOfMemory:
    """The error for a step that fits in no way; ``missing`` are the bytes that it lacked, where that is known."""
    lack = (
        f"{format_bytes(missing)} of the device's memory are missing" if missing else "the device's memory is too small"
    )
    ways = "; ".join(dict.fromkeys(tried))
    return OutOfMemory(f"{step.lower}: {lack} for the step '{step.name}' (tried: {ways}); lower {step.lower}")


def clear_memory() -> None:
    """Frees memory that nobody uses any more, on the host and on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
