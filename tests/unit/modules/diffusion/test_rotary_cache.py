"""The cached rotary embedding: the bits of diffusers' own, computed once for the steps of a picture."""

from __future__ import annotations

import threading

import torch
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from support.small_flux import forward, small_transformer
from torch import nn

from modules.diffusion.rotary_cache import CachedRotaryEmbedding

OWN = FluxPosEmbed(theta=10000, axes_dim=[4, 14, 14])


class Counting(nn.Module):
    """Flux's own embedding, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return OWN(ids)  # type: ignore[no-any-return]


def positions(tokens: int, row: int = 1) -> torch.Tensor:
    return torch.tensor([[0.0, row, column] for column in range(tokens)])


def test_equal_positions_are_embedded_once_and_others_anew() -> None:
    counting = Counting()
    cached = CachedRotaryEmbedding(counting)
    for ids, calls in ((positions(5), 1), (positions(5), 1), (positions(5, 2), 2), (positions(7), 3)):
        for ours, own in zip(cached(ids), OWN(ids), strict=True):
            assert torch.equal(ours, own)
        assert counting.calls == calls
    cached(positions(7).to(torch.float64))
    assert counting.calls == 4


def test_a_transformer_computes_the_same_bits_and_keeps_its_parameters() -> None:
    transformer = small_transformer()
    plain, names = forward(transformer), list(transformer.state_dict())
    transformer.pos_embed = CachedRotaryEmbedding(transformer.pos_embed)
    assert torch.equal(forward(transformer), plain) and torch.equal(forward(transformer), plain)
    assert list(transformer.state_dict()) == names


def test_threads_with_other_positions_get_their_own() -> None:
    cached, wrong = CachedRotaryEmbedding(OWN), list[int]()

    def work(tokens: int) -> None:
        expected = OWN(positions(tokens))
        for _ in range(200):
            if not all(map(torch.equal, cached(positions(tokens)), expected)):
                wrong.append(tokens)

    threads = [threading.Thread(target=work, args=(tokens,)) for tokens in (5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
