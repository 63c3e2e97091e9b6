"""The block cache of ``go_fast``: a step between two alike runs the first block only, and what the other blocks would
add is carried on from the steps before.

diffusers' first-block cache does the same, but compares tensors in every step, for which the host waits, and adds what
the last step added. Here the noise levels decide before the first step, and the change from step to step goes on. So
nothing waits, and which steps are skipped depends neither on the picture nor on those beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from modules.compat import decide_first_block

THRESHOLD = 0.08
"""A step is computed once the noise level has moved this far since the last computed one."""
FIRST_SHARE = 0.2
"""Of the steps, all computed: they decide what is where."""
MOST_SKIPPED = 2
"""In a row."""


def computed_steps(levels: Sequence[float]) -> list[bool]:
    """Which steps are computed, by their noise levels, 1 to 0."""
    computed: list[bool] = []
    first = max(2, round(FIRST_SHARE * len(levels)))  # two, to know the change
    last, skipped = 0, 0
    for step, level in enumerate(levels):
        moved = levels[last] - level
        compute = step < first or step == len(levels) - 1 or skipped == MOST_SKIPPED or moved >= THRESHOLD
        last, skipped = (step, 0) if compute else (last, skipped + 1)
        computed.append(compute)
    return computed


class BlockCache:
    """What the blocks after the first add, kept for the two last computed steps of one picture or batch."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels, self.computed = levels, computed_steps(levels)
        self._step = -1
        self._added: list[tuple[float, tuple[torch.Tensor, ...]]] = []

    def decide(self, added: tuple[torch.Tensor, ...] | None) -> tuple[torch.Tensor, ...] | None:
        """Called in every step after the first block, with what the others added when they ran last. Returns what they
        add now, or None when they have to run."""
        if added is not None and self.computed[self._step]:
            self._added = [*self._added[-1:], (self.levels[self._step], added)]
        self._step += 1
        if self.computed[self._step]:
            return None
        (before, first), (last, second) = self._added
        weight = (self.levels[self._step] - last) / (last - before)
        return tuple(torch.lerp(a, b, 1 + weight) for a, b in zip(first, second, strict=True))


@contextmanager
def block_cache(transformer: Any, levels: Sequence[float] | None) -> Iterator[None]:
    """Inside, the transformer skips blocks in some steps of these noise levels; without levels in none.

    What is compiled runs in the same way where no step is skipped, so that a warm-up of few steps compiles it.
    """
    if levels is None:
        yield
        return
    decide_first_block(transformer, BlockCache(levels).decide)
    try:
        yield
    finally:
        transformer.disable_cache()
