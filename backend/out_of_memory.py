"""When the device is full: clear, then try again in a leaner way, and remember what worked.

One ladder for every stage. Only errors that mean a full memory are caught, in every spelling that torch, CUDA, cuDNN and cuBLAS
have for it; everything else goes up unchanged.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from backend.errors import UserError

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


@dataclass(frozen=True)
class Rung(Generic[Result]):
    """One way to do a step: ``way`` in words, and how."""

    way: str
    run: Callable[[], Result]


@dataclass
class Ladder:
    """Retries of a service's lifetime. ``learned`` is the rung that each step begins at, ``retries`` counts steps down."""

    learned: dict[str, int] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)

    def climb(self, step: str, rungs: Sequence[Rung[Result]], lower: str) -> Result:
        """Runs the first rung that fits, beginning with the one that was needed last time.

        The rungs are ordered from fast to lean. ``lower`` names the input that makes the step smaller. Raises
        :class:`OutOfMemory` when none fits.
        """
        tried: list[str] = []
        for index in range(min(self.learned.get(step, 0), len(rungs) - 1), len(rungs)):
            try:
                result = rungs[index].run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            else:
                self.learned[step] = max(index, self.learned.get(step, 0))
                return result
            # only here, outside of the handler, has the error let go of the tensors of its stack
            clear_memory()
            tried.append(rungs[index].way)
            self.retries[step] += 1
            logger.warning("%s: out of memory (%s): %s", step, rungs[index].way, reason)
        raise OutOfMemory(f"{lower}: the device's memory is too small for the step '{step}' (tried: {'; '.join(tried)}); lower {lower}")


def clear_memory() -> None:
    """Gives back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
