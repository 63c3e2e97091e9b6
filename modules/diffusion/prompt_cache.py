"""Prompt embeddings, and a cache of those used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class PromptEmbeddings:
    """The embeddings of N prompts on the device.

    ``sequence`` is N x tokens x width, ``pooled`` N x width (None for SD 1.5, which has none), ``negative`` the
    embeddings of the negative prompts, if there are any. Where prompts have as many tokens as words, ``lengths`` are
    those of each, and what lies behind them is not read.
    """

    sequence: torch.Tensor
    pooled: torch.Tensor | None
    negative: PromptEmbeddings | None = None
    lengths: tuple[int, ...] = ()

    @classmethod
    def concatenate(cls, parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        """Several as one batch. All have a pooled embedding, or none has; likewise a negative one."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        negative = [part.negative for part in parts if part.negative]
        lengths = tuple(length for part in parts for length in part.lengths)
        return cls(
            torch.cat([part.filled(max(lengths)) if lengths else part.sequence for part in parts]),
            torch.cat(pooled) if pooled else None,
            cls.concatenate(negative) if negative else None,
            lengths,
        )

    def filled(self, tokens: int) -> torch.Tensor:
        """The sequence with zeros behind it, up to so many tokens."""
        return functional.pad(self.sequence, (0, 0, 0, max(0, tokens - self.sequence.shape[1])))[:, :tokens]

    def each(self) -> list[torch.Tensor]:
        """The embeddings of each prompt, as many tokens as it has x width."""
        return [one[:length] for one, length in zip(self.sequence, self.lengths, strict=True)]

    def extended(self, chunks: int, empty: PromptEmbeddings) -> PromptEmbeddings:
        """The embeddings of one prompt with those of an empty one so many times behind them. What stands for the prompt
        as a whole stays."""
        return PromptEmbeddings(torch.cat([self.sequence, *[empty.sequence] * chunks], dim=1), self.pooled)

    def only(self, index: int) -> PromptEmbeddings:
        """The embeddings of one prompt of the batch."""
        chosen = slice(index, index + 1)
        return PromptEmbeddings(
            self.sequence[chosen],
            None if self.pooled is None else self.pooled[chosen],
            self.negative.only(index) if self.negative else None,
            self.lengths[chosen],
        )


class PromptCache:
    """The embeddings of the ``entries`` prompts used last, so that a repeated prompt runs no text encoder. A key has
    the prompt and whatever else decides its embeddings."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._embeddings: OrderedDict[Hashable, PromptEmbeddings] = OrderedDict()

    def get(self, key: Hashable) -> PromptEmbeddings | None:
        if key in self._embeddings:
            self._embeddings.move_to_end(key)
        return self._embeddings.get(key)

    def put(self, key: Hashable, embeddings: PromptEmbeddings) -> None:
        self._embeddings[key] = embeddings
        while len(self._embeddings) > self._entries:
            self._embeddings.popitem(last=False)

    def clear(self) -> None:
        self._embeddings.clear()
