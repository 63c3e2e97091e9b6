"""Draws pictures and encodes them once: ``python -m training.models.latents --autoencoder DIR --out FILE --subject
portraits --count 20000``.

Latents are stored as the transformer sees them: packed 2 x 2, tokens x 64, scaled, half precision, one array a picture
size. What is drawn is stored too, so that training puts the same picture into new words every time.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.data.drawings import draw_many
from training.data.subjects import SUBJECTS, Size, Subject
from training.models.autoencoder import to_tensor
from training.models.precision import best_device, fast_products

logger = logging.getLogger(__name__)


@dataclass
class Bucket:
    """All pictures of one size: tokens N x (rows * columns) x 64 and what they show."""

    width: int
    height: int
    tokens: torch.Tensor
    scenes: list[Subject]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """N x 16 x H x W to N x (H/2 * W/2) x 64, as ``FluxPipeline._pack_latents`` does."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h // 2 * (w // 2), c * 4)


def encode(model: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """N x H x W x 3 bytes to tokens, N x (H/32 * W/32) x 64, in half precision."""
    with torch.inference_mode(), fast_products(model.device):
        latents = model.encode(to_tensor(torch.from_numpy(pictures).to(model.device))).latent_dist.mode().float()
    return pack((latents - model.config.shift_factor) * model.config.scaling_factor).half().cpu()


def encode_bucket(model: AutoencoderKL, scenes: list[Subject], drawings: Iterator[np.ndarray], size: Size) -> Bucket:
    # on a CPU one at a time: the activations of more fall out of the processor's cache
    together = 1 if model.device.type == "cpu" else 64
    mine = islice(drawings, len(scenes))
    tokens = [encode(model, np.stack(list(islice(mine, together)))) for _ in range(0, len(scenes), together)]
    return Bucket(size[0], size[1], torch.cat(tokens), scenes)


def draw_buckets(model: AutoencoderKL, subject: str, count: int, seed: int) -> list[Bucket]:
    """``count`` drawings, more than half of them square, the others in all the subject's shapes."""
    rng, begin, buckets = random.Random(seed), time.monotonic(), []
    sample, sizes = SUBJECTS[subject]
    scenes: list[list[Subject]] = []
    for index, size in enumerate(sizes):
        share = (0.6 if index == 0 else 0.4 / (len(sizes) - 1)) if len(sizes) > 1 else 1.0
        scenes.append([sample(rng, size) for _ in range(round(count * share))])
    drawings = draw_many([scene for of_size in scenes for scene in of_size])
    for size, of_size in zip(sizes, scenes, strict=True):
        buckets.append(encode_bucket(model, of_size, drawings, size))
        logger.info("%d x %d: %d pictures, %.0f s", *size, len(buckets[-1].scenes), time.monotonic() - begin)
    return buckets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subject", choices=SUBJECTS, default="portraits")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=best_device(), help="the GPU where there is one")
    arguments = parser.parse_args()
    model = AutoencoderKL.from_pretrained(arguments.autoencoder, trust_remote_code=False).float().to(arguments.device)
    torch.save(draw_buckets(model, arguments.subject, arguments.count, arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
