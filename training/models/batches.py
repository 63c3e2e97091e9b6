"""What the transformer learns from: endless batches of latents with captions, which are put into new words every
time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer, T5TokenizerFast

from training.data.drawings import spare_processes
from training.data.figures import HAND_CLOSE_UP, Figures
from training.data.scene import Scene
from training.data.subjects import Subject, any_caption
from training.data.vocabulary import MAX_TOKENS
from training.models.latents import Bucket

DETAIL_NOISE = 0.65
"""The detail pass starts at a strength of 0.4, which is a noise level of 0.52."""
CAPTION_DROPOUT = 0.1


class Tokenizers:
    """Captions to the token ids of T5 and of CLIP."""

    def __init__(self, folder: Path) -> None:
        self.clip = CLIPTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
        self.t5 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2", trust_remote_code=False)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """2 x N x 40, T5's first."""
        ids = [
            tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
            for tokenizer in (self.t5, self.clip)
        ]
        return torch.tensor(ids)

    def save(self, out: Path) -> None:
        self.clip.save_pretrained(out / "tokenizer")
        self.t5.save_pretrained(out / "tokenizer_2")


class Batch(NamedTuple):
    """Pictures of one size: which bucket they are from and which of its pictures they are, the token ids of N captions,
    and the noise level that they have at most."""

    bucket: int
    pictures: list[int]
    words: torch.Tensor
    most_noise: float


class Batches(IterableDataset[Batch]):
    """Endless batches, sizes in turn by how many pictures they have. ``details`` is the share of those with pictures of
    faces and hands near by, at little noise; 0 where there are no such pictures."""

    def __init__(
        self,
        buckets: list[Bucket],
        tokenizers: Tokenizers,
        size: int,
        seed: int,
        other_words: float = 0.0,
        details: float = 0.0,
    ) -> None:
        self.scenes, self.tokenizers, self.size, self.seed = [one.scenes for one in buckets], tokenizers, size, seed
        self.other_words = other_words
        self.every = [range(len(scenes)) for scenes in self.scenes]
        self.near = [[i for i, one in enumerate(scenes) if is_near(one)] for scenes in self.scenes]
        self.details = details if any(self.near) else 0.0

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = random.Random(self.seed if worker is None else f"{self.seed} {worker.id}")
        while True:
            detail = rng.random() < self.details
            pictures = self.near if detail else self.every
            bucket = rng.choices(range(len(pictures)), [len(of_size) for of_size in pictures])[0]
            picked = rng.choices(pictures[bucket], k=self.size)
            texts = [self.words(self.scenes[bucket][i], rng) for i in picked]
            yield Batch(bucket, picked, self.tokenizers(texts), DETAIL_NOISE if detail else 1.0)

    def words(self, subject: Subject, rng: random.Random) -> str:
        return "" if rng.random() < CAPTION_DROPOUT else any_caption(subject, rng, self.other_words)

    def loaded(self) -> Iterator[Batch]:
        """The batches, made by processes of their own where there are cores to spare."""
        return iter(DataLoader(self, batch_size=None, num_workers=spare_processes()))


def is_near(subject: Subject) -> bool:
    """Whether the picture is filled as a crop of the detail pass is."""
    scene = subject.scene if isinstance(subject, Figures) else subject
    return isinstance(scene, Scene) and scene.framing in ("close-up", HAND_CLOSE_UP)


def position_ids(width: int, height: int, factor: int) -> torch.Tensor:
    """Row and column of every token, (rows * columns) x 3, as ``FluxPipeline._prepare_latent_image_ids`` gives them."""
    rows, columns = height // factor, width // factor
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.view(-1, 3)


class Pictures:
    """The latents of all buckets on ``device``, with their position ids."""

    def __init__(self, buckets: list[Bucket], device: torch.device) -> None:
        self.tokens = [bucket.tokens.to(device) for bucket in buckets]
        self.ids = [position_ids(bucket.width, bucket.height, 32).to(device) for bucket in buckets]

    def of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens N x (rows * columns) x 64, and the position ids of all of them, (rows * columns) x 3."""
        tokens = self.tokens[batch.bucket]
        return tokens[torch.tensor(batch.pictures).to(tokens.device)].float(), self.ids[batch.bucket]


def read_buckets(files: list[Path]) -> list[Bucket]:
    """The pictures of all files, a bucket a size."""
    return [bucket for file in files for bucket in torch.load(file, weights_only=False)]


@dataclass(frozen=True)
class Lessons:
    """What the transformer learns from: ``latents`` with captions for the tokenizers in ``models``, so many in a batch.

    Attributes:
        other_words: The share of captions that are not in the usual form.
        details: The share of batches as the detail pass draws them.
    """

    models: Path
    latents: list[Path]
    batch: int
    seed: int
    other_words: float
    details: float
    device: torch.device

    def opened(self) -> tuple[Tokenizers, Pictures, Iterator[Batch]]:
        buckets, tokenizers = read_buckets(self.latents), Tokenizers(self.models)
        batches = Batches(buckets, tokenizers, self.batch, self.seed, self.other_words, self.details)
        return tokenizers, Pictures(buckets, self.device), batches.loaded()
