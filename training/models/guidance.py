"""Distills guidance into the transformer: ``python -m training.models.guidance --models DIR --latents FILE
--undistilled DIR --out DIR --minutes 15``.

As Flux dev's authors did it: the target is the frozen model's own classifier-free guidance, and the scale goes into the
guidance embedding. Afterwards a step costs one forward pass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training.models.batches import Batch, Lessons
from training.models.descent import descend
from training.models.transformer import (
    Generator,
    TextEncoders,
    add_common_arguments,
    lessons_of,
    make_optimizer,
    noise_levels,
    open_transformer,
    predict,
)

GUIDANCE = (1.0, 6.0)


def guidance_strength(guidance: torch.Tensor) -> torch.Tensor:
    """The weight of classifier-free guidance for a guidance scale: 3.5, Flux's usual one, is 2.5 here."""
    return 1 + 0.6 * (guidance - 1)


def guidance_loss(
    model: nn.Module, teacher: Generator, no_words: torch.Tensor, tokens: torch.Tensor, ids: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """How far a single pass of ``model`` is from both passes of ``teacher``, at a random guidance scale."""
    count, device = len(tokens), tokens.device
    t = batch.most_noise * noise_levels(count, device)
    noisy = torch.lerp(tokens, torch.randn_like(tokens), t[:, None, None])
    guidance, one = torch.empty(count, device=device).uniform_(*GUIDANCE), torch.ones(count, device=device)
    with torch.no_grad():
        text = teacher.encoders(batch.words.to(device))
        sequence, pooled = (part.expand(count, *part.shape[1:]) for part in teacher.encoders(no_words))
        worded = predict(teacher.transformer, noisy, t, text, one, ids)
        wordless = predict(teacher.transformer, noisy, t, (sequence, pooled), one, ids)
        target = wordless + guidance_strength(guidance)[:, None, None] * (worded - wordless)
    return functional.mse_loss(predict(model, noisy, t, text, guidance, ids), target)


def train(lessons: Lessons, undistilled: Path, out: Path, minutes: float, rate: float, compiled: bool) -> None:
    torch.manual_seed(lessons.seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizers, pictures, batches = lessons.opened()
    no_words = tokenizers([""]).to(lessons.device)
    teacher = Generator(open_transformer(undistilled), TextEncoders(lessons.models)).to(lessons.device)
    teacher.requires_grad_(False).eval()
    learner = open_transformer(out if (out / "config.json").exists() else undistilled).to(lessons.device)
    model: nn.Module = learner
    if compiled:
        model = torch.compile(model, dynamic=True)  # type: ignore[assignment]

    def loss() -> torch.Tensor:
        some = next(batches)
        return guidance_loss(model, teacher, no_words, *pictures.of(some), some)

    descend(learner, [make_optimizer(learner, rate)], loss, minutes, 0.99, lambda average: average.save_pretrained(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--undistilled", type=Path, required=True, help="folder of the transformer that learned before")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=float, default=0.01)
    given = parser.parse_args()
    train(lessons_of(given), given.undistilled, given.out, given.minutes, given.rate, given.compile)


if __name__ == "__main__":
    main()
