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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.data.subjects import SUBJECTS, Size, Subject, draw_subject
from training.models.autoencoder import to_tensor
from training.models.precision import fast_products

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


def encode_bucket(model: AutoencoderKL, scenes: list[Subject], size: Size) -> Bucket:
    tokens = []
    for scene in scenes:  # one at a time: the activations of more fall out of the processor's cache
        picture = np.array(draw_subject(scene))[None]
        with torch.inference_mode(), fast_products():
            latents = model.encode(to_tensor(picture)).latent_dist.mode().float()
        tokens.append(pack((latents - model.config.shift_factor) * model.config.scaling_factor).half())
    return Bucket(size[0], size[1], torch.cat(tokens), scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subject", choices=SUBJECTS, default="portraits")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    model = AutoencoderKL.from_pretrained(arguments.autoencoder, trust_remote_code=False).float()
    rng = random.Random(arguments.seed)
    begin, buckets = time.monotonic(), []
    sample, sizes = SUBJECTS[arguments.subject]
    for index, size in enumerate(sizes):
        share = (0.6 if index == 0 else 0.4 / (len(sizes) - 1)) if len(sizes) > 1 else 1.0
        buckets.append(encode_bucket(model, [sample(rng, size) for _ in range(round(arguments.count * share))], size))
        logger.info("%d x %d: %d pictures, %.0f s", *size, len(buckets[-1].scenes), time.monotonic() - begin)
    torch.save(buckets, arguments.out)


if __name__ == "__main__":
    main()
