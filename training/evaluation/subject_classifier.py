"""A small network that tells what a picture shows, of what colour and how many, to measure the generator with:
``python -m training.evaluation.subject_classifier`` trains it.

It learns from drawings, half of them blurred as a generator blurs, in two minutes, and is held against drawings that it
has not seen (``tests/tooling/test_training.py``). It has never seen a picture of the generator.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from training.data.figures import Figures
from training.data.scene import LANDSCAPES, Scene
from training.data.subjects import SUBJECTS, Subject, draw_subject
from training.data.things import THINGS

SHOWN = ("people", *THINGS, *LANDSCAPES)
COLOURS = tuple(dict.fromkeys(name for colours in THINGS.values() for name in colours))
MOST_THINGS = 3
SIDE = 96
"""Pixels to which a picture is reduced."""
IGNORED = -100
BATCH = 32
FILE = Path(__file__).with_suffix(".safetensors")


@dataclass(frozen=True)
class Seen:
    """What a picture shows; ``colour`` and ``count`` mean something for things only."""

    kind: str
    colour: str
    count: int


class SubjectClassifier(nn.Module):
    """N x 3 x 96 x 96 in 0..1 to the logits of kind, colour and count."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.layers = nn.Sequential(
            *(
                layer
                for inner, outer in zip(widths, widths[1:])
                for layer in (nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.BatchNorm2d(outer), nn.ReLU())
            )
        )
        self.heads = nn.ModuleList(nn.Linear(2 * widths[-1], size) for size in (len(SHOWN), len(COLOURS), MOST_THINGS))

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        maps = self.layers(pictures)
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return [head(pooled) for head in self.heads]

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> list[Seen]:
        kinds, colours, counts = (
            logits.argmax(1).tolist() for logits in self.eval()(torch.stack([as_input(one) for one in pictures]))
        )
        return [
            Seen(SHOWN[kind], COLOURS[colour], count + 1)
            for kind, colour, count in zip(kinds, colours, counts, strict=True)
        ]


def as_input(picture: Image.Image) -> torch.Tensor:
    """3 x 96 x 96 in 0..1."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def truth(subject: Subject) -> tuple[int, int, int]:
    """The indices of kind, colour and count; ``IGNORED`` for what does not apply."""
    if isinstance(subject, Scene | Figures):
        return 0, IGNORED, IGNORED
    colour = COLOURS.index(subject.colour) if subject.colour else IGNORED
    return SHOWN.index(subject.kind), colour, len(subject.places) - 1 if subject.places else IGNORED


def samples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings N x 3 x 96 x 96 and what they show, N x 3; two thirds are things, half of all are blurred."""
    rng = random.Random(seed)
    pictures, labels = [], []
    for _ in range(count):
        sample, sizes = SUBJECTS[rng.choice(("things", "things", "things", "things", "portraits", "figures"))]
        subject = sample(rng, sizes[0])
        picture = draw_subject(subject)
        if rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4)))
        pictures.append(as_input(picture))
        labels.append(truth(subject))
    return torch.stack(pictures), torch.tensor(labels)


def trained_classifier(count: int = 3000, epochs: int = 12, seed: int = 17) -> SubjectClassifier:
    torch.manual_seed(seed)
    pictures, labels = samples(count, seed)
    model = SubjectClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    steps = epochs * count // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        picked = torch.randint(count, (BATCH,))
        batch = pictures[picked]
        if torch.rand(()) < 0.5:
            batch = batch.flip(3)
        batch = (batch + 0.03 * torch.randn_like(batch)).clamp(0, 1)
        losses = [
            functional.cross_entropy(logits, labels[picked, index], ignore_index=IGNORED)
            for index, logits in enumerate(model(batch))
            if (labels[picked, index] != IGNORED).any()
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def read_classifier() -> SubjectClassifier:
    """The one that lies beside this file."""
    model = SubjectClassifier()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(FILE).items()})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()
    part = arguments.out.with_suffix(".part")
    save_file({name: tensor.half() for name, tensor in trained_classifier().state_dict().items()}, part)
    part.replace(arguments.out)


if __name__ == "__main__":
    main()
