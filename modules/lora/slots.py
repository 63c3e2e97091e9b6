"""Layers of compiled blocks with LoRA files: one slot a layer, into which the tensors of the files are put.

Compiled code is made for the functions that a model calls and for kinds of tensors, not for their values. So every
linear layer of the blocks gets a function that stays, also where no file changes the layer, and has the ranks of all
files side by side, filled up with zeros. Other files and scales then run through the same code. What is not of a low
rank (LoKr, LoHa, DoRA) runs outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from backend.offload.placements import computing_with
from modules.lora.deltas import Delta, Layer, LowRank

Forward = Callable[..., torch.Tensor]
LEAST_RANK = 16


def padded_rank(changes: Iterable[Sequence[tuple[Delta, float]]]) -> int:
    """The rank of all slots for these changes of layers: compiled code is made for one. Few different ranks, so that
    most files run through the same code."""
    ranks = (sum(len(one.down) for one, _ in deltas if isinstance(one, LowRank)) for deltas in changes)
    return 1 << (max((LEAST_RANK, *ranks)) - 1).bit_length()


class LayerSlot:
    """The function of one linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.plain = layer, layer.forward
        self.down, self.up = torch.empty(0), torch.empty(0)
        self.others: list[tuple[Delta, float]] = []
        # kept, because compiled code knows the very objects
        self._low_rank = self._with_low_rank
        self._any = torch.compiler.disable(self._with_others)

    @contextmanager
    def filled(self, deltas: Sequence[tuple[Delta, float]], rank: int, like: torch.Tensor) -> Iterator[None]:
        """Inside, the layer computes with these changes, as tensors of this rank on the device and of the type of
        ``like``."""
        low = [(delta, scale) for delta, scale in deltas if isinstance(delta, LowRank)]
        self.others = [(delta, scale) for delta, scale in deltas if not isinstance(delta, LowRank)]
        missing = rank - sum(len(delta.down) for delta, _ in low)
        downs = [*(delta.down for delta, _ in low), like.new_zeros(missing, self.layer.in_features)]
        ups = [*(scale * delta.up for delta, scale in low), like.new_zeros(self.layer.out_features, missing)]
        self.down, self.up = torch.cat(downs), torch.cat(ups, dim=1)
        try:
            with computing_with(self.layer, self._changed):
                yield
        finally:
            self.down, self.up, self.others = torch.empty(0), torch.empty(0), []

    def _changed(self, plain: Forward) -> Forward:
        if plain != self.plain:
            self.plain = plain
        return self._any if self.others else self._low_rank

    def _with_low_rank(self, input: torch.Tensor) -> torch.Tensor:
        added = functional.linear(functional.linear(input, self.down.to(input.dtype)), self.up.to(input.dtype))
        return self.plain(input) + added

    def _with_others(self, input: torch.Tensor) -> torch.Tensor:
        return adapted(self.layer, [(LowRank(self.down, self.up), 1.0), *self.others], self.plain, input)


def adapted(layer: Layer, deltas: Sequence[tuple[Delta, float]], plain: Forward, input: torch.Tensor) -> torch.Tensor:
    """The layer's output with what the files add; ``plain`` is its own forward."""
    output = plain(input)
    changed = output
    for delta, scale in deltas:
        changed = changed + scale * delta.added(layer, input, output)
    return changed
