"""The pictures of a request as latents: what denoising starts from, and what the denoiser reads in every step beside
its own latents, as further channels of every token or as further tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class PictureLatents:
    """Encoded pictures on the device; N is the number of pictures that are generated.

    Attributes:
        start: N x channels x rows x columns, not packed: what noise is added to, and what is kept outside of a mask.
        channels: N x tokens x channels, put behind the channels of the latents (FLUX.1 Fill, Canny and Depth).
        tokens: N x tokens x channels, put behind the tokens of the latents (FLUX.1 Kontext, FLUX.2).
        token_ids: The positions of ``tokens``: tokens x axes, or N x tokens x axes, as the denoiser takes them.
    """

    start: torch.Tensor | None = None
    channels: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None

    @property
    def conditions(self) -> bool:
        """Whether the denoiser reads any of them in every step."""
        return self.channels is not None or self.tokens is not None

    def only(self, index: int) -> PictureLatents:
        """What belongs to one picture of the batch."""

        def one(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[index : index + 1]

        shared = self.token_ids is None or self.token_ids.ndim == 2
        ids = self.token_ids if shared else one(self.token_ids)
        return PictureLatents(one(self.start), one(self.channels), one(self.tokens), ids)


class ConditionedDenoiser:
    """Stands in for a transformer in diffusers' pipeline: it adds ``pictures`` to the input, and gives what the
    transformer predicts for the latents' own tokens."""

    def __init__(self, transformer: Any, pictures: PictureLatents) -> None:
        self._transformer, self._pictures = transformer, pictures

    def __call__(self, hidden_states: torch.Tensor, img_ids: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
        count, added = hidden_states.shape[1], self._pictures
        if added.channels is not None:
            hidden_states = torch.cat([hidden_states, added.channels], dim=2)
        if added.tokens is not None and added.token_ids is not None:
            hidden_states = torch.cat([hidden_states, added.tokens], dim=1)
            img_ids = torch.cat([img_ids, added.token_ids], dim=-2)
        predicted, *rest = self._transformer(hidden_states=hidden_states, img_ids=img_ids, **inputs)
        return predicted[:, :count], *rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)
