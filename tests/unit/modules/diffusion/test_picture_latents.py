"""Pictures that a denoiser reads beside its own latents."""

from __future__ import annotations

from typing import Any

import torch

from modules.diffusion.picture_latents import ConditionedDenoiser, PictureLatents


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def test_one_picture_of_a_batch_keeps_what_is_its_own() -> None:
    batch = PictureLatents(numbered(2, 1, 2, 2), None, numbered(2, 3, 4), numbered(3, 3))
    second = batch.only(1)
    assert second.start is not None and second.start.tolist() == [[[[4, 5], [6, 7]]]]
    assert second.tokens is not None and second.tokens.shape == (1, 3, 4) and second.tokens[0, 0, 0] == 12
    assert second.token_ids is batch.token_ids, "positions without a batch belong to all"
    assert PictureLatents(token_ids=numbered(2, 3, 4)).only(1).token_ids.shape == (1, 3, 4)  # type: ignore[union-attr]


def test_nothing_given_is_no_condition() -> None:
    assert not PictureLatents(numbered(1, 1, 2, 2)).conditions
    assert PictureLatents(channels=numbered(1, 2, 3)).conditions and PictureLatents(tokens=numbered(1, 2, 3)).conditions


def test_the_denoiser_reads_channels_and_tokens_and_predicts_the_latents_alone() -> None:
    class Transformer:
        config = "its own"

        def __call__(self, hidden_states: torch.Tensor, img_ids: torch.Tensor, **rest: Any) -> tuple[torch.Tensor]:
            assert hidden_states.shape == (1, 2 + 3, 4) and img_ids.shape == (2 + 3, 3) and rest == {"guidance": 2}
            return (hidden_states,)

    latents, ids = numbered(1, 2, 4), numbered(2, 3)
    denoiser = ConditionedDenoiser(Transformer(), PictureLatents(tokens=numbered(1, 3, 4), token_ids=numbered(3, 3)))
    (predicted,) = denoiser(hidden_states=latents, img_ids=ids, guidance=2)
    assert torch.equal(predicted, latents) and denoiser.config == "its own"
    wide = ConditionedDenoiser(
        lambda hidden_states, img_ids: (hidden_states,), PictureLatents(channels=numbered(1, 2, 5))
    )
    assert wide(hidden_states=latents, img_ids=ids)[0].shape == (1, 2, 9)
