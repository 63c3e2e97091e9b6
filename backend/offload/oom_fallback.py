"""When the device is full: clear, then try again in a leaner way, and remember what worked.

One fallback for every stage. Only errors that mean a full memory are caught, in every spelling that torch, CUDA, cuDNN
and cuBLAS have for it; everything else goes up unchanged.
"""

from __future__ import annotations

import gc
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

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
    """Whether an error says that a memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(spelling in str(error) for spelling in SPELLINGS)


def missing_bytes(error: BaseException) -> int | None:
    """How much more the operation would have needed, where the error says what it asked for and what was free, as
    torch's does."""
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
    """One way to do a step: ``way`` in words, and how."""

    way: str
    run: Callable[[], Result]


@dataclass
class OomFallback:
    """Retries of a service's lifetime. ``learned`` is the strategy that each step begins at, ``retries`` counts steps
    down.

    ``downgrade`` places the models leaner and says how, or gives nothing when they cannot be:
    :meth:`ModelCache.downgrade`.
    """

    downgrade: Callable[[], str] = field(default=lambda: "")
    learned: dict[str, int] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)

    def run(self, step: str, strategies: Sequence[Strategy[Result]], lower: str) -> Result:
        """Runs the first strategy that fits, beginning with the one that was needed last time. When none does, the
        models are placed leaner, and it begins anew.

        The strategies are ordered from fast to lean, and borrow what they need themselves. ``lower`` names the input
        that makes the step smaller. Raises :class:`OutOfMemory` when nothing fits.
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
                self.learned[step] = index
                return result
            # only here, outside of the handler, has the error let go of the tensors of its stack
            clear_memory()
            tried.append(way)
            self.retries[step] += 1
            logger.warning("%s: out of memory (%s): %s", step, way, reason)
            index += 1
            if index == len(strategies):
                leaner = self.downgrade()
                if not leaner:
                    lack = (
                        f"{format_bytes(missing)} of the device's memory are missing"
                        if missing
                        else "the device's memory is too small"
                    )
                    raise OutOfMemory(
                        f"{lower}: {lack} for the step '{step}' (tried: {'; '.join(dict.fromkeys(tried))}); lower "
                        f"{lower}"
                    )
                logger.warning("models are placed leaner: %s", leaner)
                tried.append(leaner)
                self.learned.clear()  # there is room again
                index = 0


def clear_memory() -> None:
    """Gives back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
