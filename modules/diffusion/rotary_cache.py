"""Rotary position embeddings that are computed once for all steps of a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class CachedRotaryEmbedding(nn.Module):
    """In the place of a transformer's ``pos_embed``: returns its last result again for equal position ids.

    Flux's own computes sines and cosines in float64 in every step, though positions depend only on the size of the
    picture. The ids (tokens x axes) are compared by value, which makes the host wait for a GPU, so this is for a CPU.
    Several threads may share it: what is kept is replaced at once, and never changed. Compiled code computes anew.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self._last: tuple[torch.Tensor, Any] | None = None

    def forward(self, ids: torch.Tensor) -> Any:
        if torch.compiler.is_compiling():
            return self.embedding(ids)
        last = self._last
        if last is None or last[0].dtype != ids.dtype or not torch.equal(last[0], ids):
            last = self._last = (ids, self.embedding(ids))
        return last[1]
