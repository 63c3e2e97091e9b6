"""Trains the autoencoder: ``python -m training.models.autoencoder --out DIR --minutes 25``.

A diffusers ``AutoencoderKL`` with 16 latent channels, as Flux has it, but narrow and without attention, so that two
cores train it on random crops.

Two things make its latents easy to generate. Noise is added to them before decoding, a little to half of the crops and
up to ``MOST_NOISE`` to the others, so that the decoder forgives the transformer's errors (l-DeTok, arXiv 2507.15856).
A third of the batches decode reduced latents, which must give the reduced picture, so that latents hold little that is
finer than what they show (EQ-VAE, arXiv 2502.09509).

Both hold the encoder back: its latents are 4 to 5 dB worse than the best that the same decoder can draw from, which
40 steps of gradient descent find near by (``--only encoder`` closes a part of that gap).
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from training.data.drawings import draw_many
from training.data.subjects import SUBJECTS
from training.models.muon import Muon
from training.models.precision import best_device, fast_products

logger = logging.getLogger(__name__)

CROP = 128
SHARES = {"portraits": 45, "figures": 30, "hands": 10, "things": 15}
"""How many drawings of a hundred are of which subject."""
HELD_OUT = 10_001
"""What is added to the seed for drawings that are only measured."""
LATENT_NOISE, MOST_NOISE, MOST_FOR_ENCODER = 0.02, 0.6, 0.15
"""Spread of the noise that is added to latents before decoding, as a share of their own spread; the last one where the
encoder goes on, whose decoder has learned to forgive."""
REDUCED_SHARE, REDUCED_SIZES = 1 / 3, (0.5, 0.75)
"""How many batches decode reduced latents, and to which sizes they are reduced."""


def build(channels: tuple[int, ...]) -> AutoencoderKL:
    """The untrained model; its spatial factor is 2 to the number of channels minus one."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=256,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def to_tensor(pictures: torch.Tensor) -> torch.Tensor:
    """N x H x W x 3 bytes to N x 3 x H x W in -1..1."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def draw_pool(seed: int, count: int, subject: str = "") -> torch.Tensor:
    """``count`` square drawings of one subject, or of all as they are in ``SHARES``, as bytes, N x 256 x 256 x 3."""
    rng = random.Random(seed)
    names = [subject or rng.choices(list(SHARES), list(SHARES.values()))[0] for _ in range(count)]
    return torch.from_numpy(np.stack(list(draw_many([SUBJECTS[name][0](rng, (256, 256)) for name in names]))))


def held_out_pools(seed: int, count: int) -> dict[str, torch.Tensor]:
    """``count`` drawings of every subject, as :func:`draw_pool` gives them, that training with ``seed`` never sees."""
    return {name: draw_pool(seed + HELD_OUT, count, name) for name in SUBJECTS}


def crops(pool: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` random squares of ``CROP`` pixels from random pictures, as ``to_tensor`` gives them."""
    last = pool.shape[1] - CROP + 1
    picture = torch.randint(len(pool), (count, 1, 1), device=pool.device)
    top, left = torch.randint(last, (2, count, 1, 1), device=pool.device)
    along = torch.arange(CROP, device=pool.device)
    return to_tensor(pool[picture, top + along[:, None], left + along])


def add_noise(latents: torch.Tensor, most: float = MOST_NOISE) -> torch.Tensor:
    """A little noise for half of N x 16 x H x W latents, up to ``most`` for the others."""
    spread = latents.detach().float().std(dim=(0, 2, 3), keepdim=True)
    much, chance = torch.rand(2, len(latents), 1, 1, 1, device=latents.device)
    strength = torch.where(chance < 0.5, LATENT_NOISE, most * much)
    return latents + strength * spread * torch.randn_like(latents)


def reduced(batch: torch.Tensor, size: float) -> torch.Tensor:
    """N x C x H x W pictures or latents, ``size`` times as large."""
    return functional.interpolate(batch.float(), scale_factor=size, mode="bilinear", antialias=True)


def reconstruction_psnr(model: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Mean PSNR in dB of whole pictures, N x H x W x 3 bytes, through the autoencoder."""
    scores = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 8):
            batch = to_tensor(pictures[start : start + 8].to(model.device))
            decoded = model.decode(model.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
            error = ((decoded - batch) / 2).square().mean(dim=(1, 2, 3))
            scores += (-10 * error.log10()).tolist()
    return float(np.mean(scores))


def finish(model: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Makes the latent distribution a point and writes shift and scale, so that latents have mean 0 and spread 1."""
    with torch.no_grad():
        head = model.encoder.conv_out
        head.weight[16:] = 0
        head.bias[16:] = -30
        latents = torch.cat(
            [model.encode(to_tensor(part.to(model.device))).latent_dist.mode() for part in pictures.split(8)]
        )
    model.register_to_config(
        shift_factor=round(float(latents.mean()), 4), scaling_factor=round(1 / float(latents.std()), 4)
    )


def reconstruction_loss(error: torch.Tensor, squared: float = 8.0) -> torch.Tensor:
    """Absolute error, ``squared`` times the squared error, and the error of the edges, which keeps lines sharp."""
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + squared * error.square().mean() + 0.5 * edges


def make_optimizer(model: AutoencoderKL, only: str | None, rate: float) -> Muon:
    """For all weights, or for those of ``only`` the encoder or the decoder."""
    model.encoder.requires_grad_(only != "decoder")
    model.decoder.requires_grad_(only != "encoder")
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (inner if parameter.ndim == 4 and "conv_in" not in name and "conv_out" not in name else outer).append(
                parameter
            )
    return Muon(inner, [(outer, rate / 10)], matrix_rate=rate)


def train(
    out: Path,
    channels: tuple[int, ...],
    minutes: float,
    batch: int,
    rate: float,
    seed: int,
    only: str | None,
    pool_size: int,
    device: torch.device,
) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    held_out = held_out_pools(seed, 24)
    pool = draw_pool(seed, pool_size).to(device)
    model = (
        AutoencoderKL.from_pretrained(out, trust_remote_code=False)
        if (out / "config.json").exists()
        else build(channels)
    )
    model.to(device)
    optimizer = make_optimizer(model, only, rate)
    average = copy.deepcopy(model).requires_grad_(False)
    begin, step, spent = time.monotonic(), 0, 0.0
    while spent < 1:
        spent = (time.monotonic() - begin) / (60 * minutes)
        pictures = crops(pool, batch)
        with fast_products(device):
            latents = model.encoder(pictures)[:, :16]
            if only != "encoder" and rng.random() < REDUCED_SHARE:
                size = rng.choice(REDUCED_SIZES)
                latents, pictures = reduced(latents, size), reduced(pictures, size)
            decoded = model.decoder(add_noise(latents, MOST_FOR_ENCODER if only == "encoder" else MOST_NOISE))
        loss = reconstruction_loss(decoded.float() - pictures)
        loss.backward()
        optimizer.step(min(1.0, (step + 1) / 50) * max(0.01, min(1.0, (1 - spent) / 0.7)))
        step += 1
        decay = min(0.995, step / (step + 20))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if step % 150 == 0 or spent >= 1:
            psnr = {name: round(reconstruction_psnr(average, pictures), 2) for name, pictures in held_out.items()}
            logger.info(
                "step %d, %.0f%% of the time, loss %.4f, held-out PSNR in dB: %s", step, 100 * spent, loss.item(), psnr
            )
            average.save_pretrained(out)
    if only is None:  # a transformer may have learned the other's scale already
        finish(average, pool[:256])
    average.save_pretrained(out)
    (out / "training.json").write_text(json.dumps({"steps": step, "psnr_db": psnr, "minutes": minutes}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 160])
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=4000)
    parser.add_argument("--only", choices=("encoder", "decoder"), help="go on with this one, the other stays as it is")
    parser.add_argument("--device", type=torch.device, default=best_device(), help="the GPU where there is one")
    arguments = parser.parse_args()
    train(
        arguments.out,
        tuple(arguments.channels),
        arguments.minutes,
        arguments.batch,
        arguments.rate,
        arguments.seed,
        arguments.only,
        arguments.pool,
        arguments.device,
    )


if __name__ == "__main__":
    main()
