"""Draws scenes and encodes them once: ``python -m training.latents --autoencoder DIR --out FILE --count 20000``.

Latents are stored as the transformer sees them: packed 2 x 2, tokens x 64, scaled, half precision, one array a picture size.
The scenes are stored too, so that training puts the same picture into new words every time.
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

from training.autoencoder import to_tensor
from training.drawing import draw_scene
from training.precision import fast_products
from training.scene import ASPECTS, Scene, sample_training_scene

logger = logging.getLogger(__name__)


@dataclass
class Bucket:
    """All pictures of one size: tokens N x (rows * columns) x 64 and their scenes."""

    width: int
    height: int
    tokens: torch.Tensor
    scenes: list[Scene]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """N x 16 x H x W to N x (H/2 * W/2) x 64, as ``FluxPipeline._pack_latents`` does."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h // 2 * (w // 2), c * 4)


def encode_bucket(model: AutoencoderKL, rng: random.Random, size: tuple[int, int], count: int) -> Bucket:
    scenes = [sample_training_scene(rng, size) for _ in range(count)]
    tokens = []
    for scene in scenes:  # one at a time: the activations of more fall out of the processor's cache
        picture = np.asarray(draw_scene(scene))[None]
        with torch.inference_mode(), fast_products():
            latents = model.encode(to_tensor(picture)).latent_dist.mode().float()
        tokens.append(pack((latents - model.config.shift_factor) * model.config.scaling_factor).half())
    return Bucket(size[0], size[1], torch.cat(tokens), scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    model = AutoencoderKL.from_pretrained(arguments.autoencoder)
    rng = random.Random(arguments.seed)
    begin, buckets = time.monotonic(), []
    for index, size in enumerate(ASPECTS):
        buckets.append(encode_bucket(model, rng, size, round(arguments.count * (0.6 if index == 0 else 0.4 / (len(ASPECTS) - 1)))))
        logger.info("%d x %d: %d pictures, %.0f s", *size, len(buckets[-1].scenes), time.monotonic() - begin)
    torch.save(buckets, arguments.out)


if __name__ == "__main__":
    main()
