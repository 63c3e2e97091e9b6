"""Draws pictures and lets the generator redraw them: ``python -m training.models.redrawn_latents --flux
weights/embedded/flux --out FILE --count 1200``.

A decoder that has only seen latents of the encoder passes on what the transformer does a little wrong: smeared
glasses, pale patches. From these pairs, the latents of a redrawn picture and the drawing that was meant, it learns what
to make of them. Little is redrawn, so that everything stays in its place.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from backend.devices.torchvision_ops import ensure_torchvision_operators
from training.data.drawings import as_bytes
from training.data.subjects import SUBJECTS, any_caption
from training.models.precision import best_device, fast_products

logger = logging.getLogger(__name__)

SHARES = {"portraits": 65, "figures": 25, "hands": 10}
STRENGTHS = (0.1, 0.4)
"""From which and up to which; at 0.4 everything stays in its place."""
STEPS = 20


@dataclass
class Redrawn:
    """Drawings as bytes, N x 256 x 256 x 3, and their redrawn latents as the decoder reads them, N x 16 x 16 x 16."""

    pictures: torch.Tensor
    latents: torch.Tensor


def redraw(
    flux: Path, count: int, seed: int, together: int, strengths: tuple[float, float], device: torch.device
) -> Redrawn:
    """``count`` drawings of all subjects, redrawn by the model in the folder ``flux``, so many ``together`` and at the
    same strength between these two."""
    ensure_torchvision_operators()
    from diffusers import FluxImg2ImgPipeline

    pipeline = FluxImg2ImgPipeline.from_pretrained(flux, trust_remote_code=False).to(device, torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    words = int(json.loads((flux / "family.json").read_text())["tokens"])
    config, rng, begin = pipeline.vae.config, random.Random(seed), time.monotonic()
    pictures: list[np.ndarray] = []
    latents: list[torch.Tensor] = []
    while len(pictures) < count:
        names = rng.choices(list(SHARES), list(SHARES.values()), k=together)
        subjects = [SUBJECTS[name][0](rng, (256, 256)) for name in names]
        drawings = [Image.fromarray(drawing) for drawing in map(as_bytes, subjects)]
        with torch.inference_mode(), fast_products(device):
            packed = pipeline(
                prompt=[any_caption(subject, rng, 0.3) for subject in subjects],
                image=drawings,
                width=256,
                height=256,
                strength=rng.uniform(*strengths),
                num_inference_steps=STEPS,
                guidance_scale=rng.uniform(2.5, 4.5),
                max_sequence_length=words,
                generator=torch.Generator().manual_seed(rng.getrandbits(31)),
                output_type="latent",
            ).images
        unpacked = pipeline._unpack_latents(packed.float(), 256, 256, pipeline.vae_scale_factor)
        latents.append((unpacked / config.scaling_factor + config.shift_factor).half().cpu())
        pictures += [np.asarray(drawing) for drawing in drawings]
        if len(pictures) % (20 * together) == 0:
            logger.info("%d of %d pictures, %.0f s", len(pictures), count, time.monotonic() - begin)
    return Redrawn(torch.from_numpy(np.stack(pictures)), torch.cat(latents))


def save_redrawn(redrawn: Redrawn, file: Path) -> None:
    save_file({"pictures": redrawn.pictures, "latents": redrawn.latents.contiguous()}, file)


def load_redrawn(file: Path) -> Redrawn:
    return Redrawn(**load_file(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flux", type=Path, required=True, help="the folder of the model that redraws")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--together", type=int, default=6, help="pictures redrawn at once, at the same strength")
    parser.add_argument("--strengths", type=float, nargs=2, default=STRENGTHS, help="from which and up to which")
    parser.add_argument("--device", type=torch.device, default=best_device(), help="the GPU where there is one")
    given = parser.parse_args()
    redrawn = redraw(given.flux, given.count, given.seed, given.together, tuple(given.strengths), given.device)
    save_redrawn(redrawn, given.out)


if __name__ == "__main__":
    main()
