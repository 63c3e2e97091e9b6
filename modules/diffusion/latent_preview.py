"""Small pictures of latents while the denoiser still runs, without the autoencoder.

A latent is close to a linear function of the mean colour of its pixels. The map back to colours is fitted by least
squares to what the loaded autoencoder encodes, so every model has one, whatever its number of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

LatentSink = Callable[[Callable[[], torch.Tensor]], None]
"""Takes, after a step, a function that gives the latents as the denoiser sees the finished picture at that step:
N x channels x rows x columns, in the scale that the denoiser was trained for."""
Encode = Callable[[Sequence[Image.Image]], torch.Tensor]

SAMPLES, SEED = 6, 0


@dataclass(frozen=True)
class LatentPreview:
    """``weights`` is (channels + 1) x 3: red, green and blue in -1..1 by every channel, and their means."""

    weights: torch.Tensor

    @classmethod
    def fitted(cls, encode: Encode, side: int) -> LatentPreview:
        """Fitted to pictures of ``side`` x ``side`` pixels, which ``encode`` turns into latents."""
        images = sample_pictures(side)
        latents = encode(images).float().cpu()
        pixels = torch.stack([torch.from_numpy(np.array(image, np.float32)).movedim(-1, 0) for image in images])
        colours = functional.adaptive_avg_pool2d(pixels / 127.5 - 1, (latents.shape[-2], latents.shape[-1]))
        return cls(torch.linalg.lstsq(_with_ones(latents), _rows(colours)).solution)

    def pictures(self, latents: torch.Tensor) -> list[Image.Image]:
        """One picture for each of N x channels x rows x columns, a pixel for a latent."""
        latents = latents.float().cpu()
        count, _, rows, columns = latents.shape
        colours = (_with_ones(latents) @ self.weights).reshape(count, rows, columns, 3)
        pixels = ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return [Image.fromarray(one) for one in pixels]


@dataclass
class FinishedEstimate:
    """What the picture is going to be, from the latents before and after a step.

    A step of Euler's method goes along a straight line, which is followed to noise level 0. Without ``straight``, or
    without noise levels, the latents are taken as they are, with their noise.
    """

    straight: bool
    before: torch.Tensor | None = None

    def after_step(self, latents: torch.Tensor, sigmas: torch.Tensor | None, done: int) -> Callable[[], torch.Tensor]:
        """A function that gives the estimate when ``done`` steps are; ``sigmas`` are the noise levels of all."""
        before = self.before

        def estimate() -> torch.Tensor:
            if not self.straight or before is None or sigmas is None:
                return latents
            begin, end = float(sigmas[done - 1]), float(sigmas[done])
            if begin == end:
                return latents
            return torch.lerp(latents.float(), before.float(), end / (end - begin))

        return estimate


def sample_pictures(side: int) -> list[Image.Image]:
    """Pictures of coloured areas and shades, as photographs and drawings are made of."""
    generator = np.random.default_rng(SEED)
    pictures = []
    for cells, following in pairwise([2, 4, 8, 3, 6, 12, 5][: SAMPLES + 1]):
        areas, shades = (generator.integers(0, 256, (n, n, 3), np.uint8) for n in (cells, following))
        hard = Image.fromarray(areas).resize((side, side), Image.Resampling.NEAREST)
        soft = Image.fromarray(shades).resize((side, side), Image.Resampling.BICUBIC)
        pictures.append(Image.blend(hard, soft, 0.5))
    return pictures


def _rows(grid: torch.Tensor) -> torch.Tensor:
    """N x channels x rows x columns to a row for every place."""
    return grid.movedim(1, -1).flatten(0, 2)


def _with_ones(latents: torch.Tensor) -> torch.Tensor:
    rows = _rows(latents)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
