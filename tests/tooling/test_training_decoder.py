"""The training of the decoder: what it is shown, and what it is asked for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from training.data.drawings import as_bytes
from training.data.scene import sample_scene
from training.models.autoencoder import to_tensor
from training.models.decoder import Discriminator, Pairs, drawn_loss, generated_loss
from training.models.redrawn_latents import Redrawn, save_redrawn

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn() -> torch.Tensor:
    rng = random.Random(7)
    drawings = [torch.tensor(as_bytes(sample_scene(rng, (128, 128)))) for _ in range(4)]
    return to_tensor(torch.stack(drawings))


def softened(pictures: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)


def test_latents_come_with_the_part_of_the_drawing_that_they_show(tmp_path: Path) -> None:
    place = torch.arange(16 * 16).view(16, 16)
    latents = place.half().expand(3, 16, 16, 16).contiguous()
    pictures = place.repeat_interleave(16, 0).repeat_interleave(16, 1)[None, ..., None].expand(3, 256, 256, 3)
    save_redrawn(Redrawn(pictures.byte().contiguous(), latents), tmp_path / "redrawn")
    for _ in range(5):
        taken, shown = Pairs([tmp_path / "redrawn"], 2, CPU).take()
        assert taken.shape == (2, 16, 10, 10) and shown.shape == (2, 3, 160, 160)
        assert torch.equal(taken[:, 0], ((shown[:, 0, ::16, ::16] + 1) * 127.5).round())


def test_a_soft_picture_costs_more_than_a_crisp_one_that_is_as_wrong(drawn: torch.Tensor) -> None:
    soft = softened(drawn)
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))
    crisp = drawn + noise.sign() * (soft - drawn).abs()
    assert (crisp - drawn).square().mean() == pytest.approx((soft - drawn).square().mean())
    assert drawn_loss(drawn, drawn) < drawn_loss(crisp, drawn) < drawn_loss(soft, drawn)


def test_a_generated_picture_may_differ_but_not_be_softer(drawn: torch.Tensor) -> None:
    torch.manual_seed(0)
    judge, mirrored = Discriminator(), drawn.flip(-1)
    assert generated_loss(judge, drawn, mirrored) < generated_loss(judge, drawn, softened(mirrored))
