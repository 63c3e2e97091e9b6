"""The training of the transformer, on a few drawings and for a step of every kind."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from backend.core.settings import ROOT
from training.data import drawings
from training.data.figures import sample_hand
from training.data.scene import sample_scene
from training.data.vocabulary import MAX_TOKENS
from training.models import guidance, transformer
from training.models.autoencoder import CROP, crops, draw_pool
from training.models.batches import DETAIL_NOISE, Batches, Lessons, Tokenizers, is_near
from training.models.latents import Bucket, draw_buckets
from training.models.muon import Muon, orthogonalized

FLUX = ROOT / "weights" / "embedded" / "flux"
CPU = torch.device("cpu")
A_STEP = 1e-9
"""Minutes in which one step is done."""


@pytest.fixture(scope="module")
def portraits() -> list[Bucket]:
    model = AutoencoderKL.from_pretrained(FLUX / "vae", trust_remote_code=False).float()
    return [*draw_buckets(model, "portraits", 20, seed=3), *draw_buckets(model, "faces", 2, seed=4)]


@pytest.fixture(scope="module")
def latents(portraits: list[Bucket], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("latents") / "portraits.pt"
    torch.save(portraits, file)
    return file


class TestDrawings:
    def test_processes_draw_what_one_draws_in_the_same_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = random.Random(1)
        subjects = [sample_scene(rng, (64, 64)) for _ in range(5)] + [sample_hand(rng, (64, 64))]
        alone = list(map(drawings.as_bytes, subjects))
        monkeypatch.setattr(drawings, "spare_processes", lambda: 2)
        together = list(drawings.draw_many(subjects))
        assert len(together) == len(alone)
        assert all(np.array_equal(one, other) for one, other in zip(together, alone))

    def test_crops_are_squares_of_the_pictures(self) -> None:
        pool = draw_pool(2, 2, "hands")
        everywhere = pool.unfold(1, CROP, 1).unfold(2, CROP, 1)  # 2 x 129 x 129 x 3 x CROP x CROP
        for crop in crops(pool, 3):
            as_bytes = ((crop + 1) * 127.5).round().byte()
            assert (everywhere[..., 0, 0] == as_bytes[:, 0, 0]).all(-1).any()
            assert (everywhere[..., -1, -1] == as_bytes[:, -1, -1]).all(-1).any()


class TestMuon:
    def test_matrices_done_together_are_those_done_alone(self) -> None:
        torch.manual_seed(0)
        gradients = torch.randn(3, 24, 8)
        for alone, together in zip(gradients, orthogonalized(gradients)):
            torch.testing.assert_close(orthogonalized(alone[None])[0], together)

    def test_the_update_is_nearly_semi_orthogonal(self) -> None:
        torch.manual_seed(0)
        spectrum = torch.linalg.svdvals(orthogonalized(torch.randn(2, 32, 16), iterations=10))
        assert spectrum.min() > 0.6
        assert spectrum.max() < 1.3

    def test_matrices_of_several_shapes_each_get_their_own_step(self) -> None:
        torch.manual_seed(0)
        wide, tall, kernel = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((4, 9), (9, 4), (6, 2, 3, 3)))
        before = [one.detach().clone() for one in (wide, tall, kernel)]
        optimizer = Muon([wide, tall, kernel], [([torch.nn.Parameter(torch.zeros(1))], 0.1)], matrix_rate=0.1)
        for one in (wide, tall):
            one.grad = torch.randn_like(one)
        step = {id(one): one.grad.clone() for one in (wide, tall) if one.grad is not None}
        optimizer.step(1.0)
        for one, old in zip((wide, tall), before):
            moved = old - one.detach()
            assert torch.nn.functional.cosine_similarity(moved.flatten(), step[id(one)].flatten(), dim=0) > 0.5
        assert torch.equal(kernel, before[2]), "it had no gradient"


class TestBatches:
    def test_a_share_of_them_is_what_the_detail_pass_draws(self, portraits: list[Bucket]) -> None:
        batches = iter(Batches(portraits, Tokenizers(FLUX), 3, seed=4, details=0.5))
        some = [next(batches) for _ in range(40)]
        assert {one.most_noise for one in some} <= {1.0, DETAIL_NOISE}
        near = [one for one in some if one.most_noise == DETAIL_NOISE]
        assert 5 < len(near) < 35
        assert all(is_near(portraits[one.bucket].scenes[picture]) for one in near for picture in one.pictures)
        assert all(one.words.shape == (2, 3, MAX_TOKENS) for one in some)

    def test_a_seed_gives_the_same_batches(self, portraits: list[Bucket]) -> None:
        first, again = (next(iter(Batches(portraits, Tokenizers(FLUX), 3, seed=5))) for _ in range(2))
        assert first.pictures == again.pictures
        assert torch.equal(first.words, again.words)


def moved(old: torch.nn.Module, new: torch.nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    ours, theirs = (torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in (one, other))
    return float((ours - theirs).norm())


def train(latents: Path, out: Path, encoders_rate: float) -> None:
    transformer.train(Lessons(FLUX, [latents], 2, 0, 0.4, 0.0, CPU), out, A_STEP, 0.02, encoders_rate, compiled=False)


class TestTransformer:
    def test_it_goes_on_where_an_interrupted_run_was(self, latents: Path, tmp_path: Path) -> None:
        train(latents, tmp_path, 0.0)
        first = transformer.open_transformer(tmp_path)
        train(latents, tmp_path, 0.0)
        second = transformer.open_transformer(tmp_path)
        assert moved(first, second)
        assert distance(first, second) < distance(first, transformer.build()) / 3
        assert not (tmp_path / "text_encoder").exists(), "these stay what they are"

    def test_the_text_encoders_learn_where_they_are_asked_to(self, latents: Path, tmp_path: Path) -> None:
        train(latents, tmp_path, 0.01)
        assert moved(transformer.TextEncoders(FLUX), transformer.TextEncoders(tmp_path))
        words = ["a smiling woman, green background", "PORTRAIT, MAN"]
        assert torch.equal(Tokenizers(tmp_path)(words), Tokenizers(FLUX)(words))

    def test_guidance_is_distilled_from_a_frozen_copy(self, latents: Path, tmp_path: Path) -> None:
        start = FLUX / "transformer"
        guidance.train(Lessons(FLUX, [latents], 2, 0, 0.4, 0.0, CPU), start, tmp_path, A_STEP, 0.02, compiled=False)
        assert moved(transformer.open_transformer(start), transformer.open_transformer(tmp_path))
