"""Trains the upscaler: ``python -m training.models.upscaler --out DIR``.

A small ESRGAN (RRDBNet) that upscales four times. It starts as a pass-through: three channels carry the picture itself,
so that its first output is about as good as a bicubic upscaling and every step goes into the edges. Half of its
inputs are exact reductions of a drawing, half are soft and slightly noisy, as the decoder of a small autoencoder leaves
them.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import nn

from backend.devices.torchvision_ops import ensure_torchvision_operators
from modules.upscaling.tiled import Upscaler, load_upscaler_network
from training.data.drawing import draw_scene
from training.data.scene import sample_scene
from training.models.muon import Muon
from training.models.precision import fast_products

logger = logging.getLogger(__name__)

FACTOR = 4
CROP = 40
"""Side of the training crops in pixels of the small picture. Their border counts: beyond it the network sees the black
that it sees beyond the border of any picture."""
PLACES = 4
"""Random places that are looked at for one crop; the most varied is taken."""
REDUCTIONS = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def carry(layer: nn.Conv2d, kernel: torch.Tensor) -> None:
    """Makes a convolution pass on its first three channels, each through ``kernel``, and nothing else into them."""
    layer.weight[:3] = torch.eye(3, layer.in_channels)[:, :, None, None] * kernel
    layer.bias[:3] = 0  # type: ignore[index]


def build(features: int = 8, blocks: int = 1) -> Any:
    """spandrel's RRDBNet, which at first sharpens its input and upscales it smoothly: about as good as bicubic."""
    ensure_torchvision_operators()
    from spandrel.architectures.ESRGAN import ESRGAN

    network = ESRGAN(num_filters=features, num_blocks=blocks, scale=FACTOR)
    layers = network.model
    point, smooth, sharp = (
        torch.tensor(kernel) for kernel in ((0.0, 1.0, 0.0), (0.25, 0.5, 0.25), (-0.25, 1.5, -0.25))
    )
    kernels = {
        index: torch.outer(kernel, kernel)
        for index, kernel in ((0, point), (3, smooth), (6, smooth), (8, point), (10, point))
    }
    body = layers[1].sub[-1]
    with torch.no_grad():
        for index, kernel in kernels.items():
            carry(layers[index], kernel)
        body.weight *= 0.1
        carry(body, (torch.outer(sharp, sharp) - kernels[0]) / 1.2)  # an RRDB gives 1.2 times its input at first
    return network


def export(network: Any) -> dict[str, torch.Tensor]:
    """The weights in half precision under Real-ESRGAN's names."""
    blocks = len(network.model[1].sub) - 1
    names = {
        "0": "conv_first",
        f"1.sub.{blocks}": "conv_body",
        "3": "conv_up1",
        "6": "conv_up2",
        "8": "conv_hr",
        "10": "conv_last",
    }

    def renamed(key: str) -> str:
        layer, kind = key.removeprefix("model.").rsplit(".", 1)
        inner = re.sub(r"1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", r"body.\1.rdb\2.conv\3", layer)
        return f"{names.get(layer, inner)}.{kind}"

    return {renamed(key): value.half().contiguous() for key, value in network.state_dict().items()}


def draw_pool(seed: int, amount: int) -> list[Image.Image]:
    """``amount`` square drawings, 1024 x 1024."""
    rng = random.Random(seed)
    return [draw_scene(sample_scene(rng, (256, 256)), scale=FACTOR) for _ in range(amount)]


def random_box(picture: Image.Image, rng: random.Random) -> tuple[int, int, int, int]:
    left, top = (FACTOR * rng.randrange(side // FACTOR - CROP + 1) for side in picture.size)
    return left, top, left + CROP * FACTOR, top + CROP * FACTOR


def example(pool: list[Image.Image], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """A crop of a drawing and what is left of it after reduction: CROP and FACTOR * CROP pixels wide, H x W x 3,
    0..255."""
    picture = rng.choice(pool)
    # most of a drawing is flat, which teaches nothing: the most varied of a few places
    box = max(
        (random_box(picture, rng) for _ in range(PLACES)),
        key=lambda box: float(np.asarray(picture.resize((8, 8), Image.Resampling.NEAREST, box)).std()),
    )
    small, sharp = picture.resize((CROP, CROP), rng.choice(REDUCTIONS), box), picture.crop(box)
    soft = rng.random() < 0.5
    if soft:
        small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    pair = [np.asarray(image, dtype=np.float32) for image in (small, sharp)]
    if soft:
        pair[0] = pair[0] + np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(0, 3), pair[0].shape
        ).astype(np.float32)
    turns, mirror = rng.randrange(4), rng.choice((1, -1))
    small_pixels, sharp_pixels = (np.rot90(pixels[:, ::mirror], turns) for pixels in pair)
    return small_pixels, sharp_pixels


def examples(pool: list[Image.Image], amount: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Small and sharp crops, N x 3 x H x W in 0..1."""
    small, sharp = (
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
        for pixels in zip(*(example(pool, rng) for _ in range(amount)))
    )
    return small, sharp


def psnr(image: Image.Image, reference: Image.Image) -> float:
    error = np.asarray(image, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return 10 * math.log10(255**2 / float(np.square(error).mean()))


def evaluate(path: Path, pictures: list[Image.Image]) -> dict[str, float]:
    """Mean and worst PSNR in dB of the written file, used as the product uses it, against a bicubic upscaling."""
    upscaler = Upscaler(load_upscaler_network(path), tile_size=256)
    factor = upscaler.factor
    figures = {}
    for kind, radius in (("clean", 0.0), ("soft", 0.6)):
        reduced = [
            picture.resize((picture.width // factor, picture.height // factor), Image.Resampling.BICUBIC)
            for picture in pictures
        ]
        inputs = [image.filter(ImageFilter.GaussianBlur(radius)) for image in reduced]
        ours = [psnr(upscaler.upscale(image, factor), picture) for image, picture in zip(inputs, pictures)]
        bicubic = [
            psnr(image.resize(picture.size, Image.Resampling.BICUBIC), picture)
            for image, picture in zip(inputs, pictures)
        ]
        figures[f"{kind}_psnr_db"] = round(float(np.mean(ours)), 2)
        figures[f"{kind}_bicubic_psnr_db"] = round(float(np.mean(bicubic)), 2)
        figures[f"{kind}_least_gain_db"] = round(min(a - b for a, b in zip(ours, bicubic)), 2)
    return figures


def train(out: Path, minutes: float, batch: int, rate: float, muon_rate: float, seed: int, pool_size: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    pool, held_out = draw_pool(seed, pool_size), draw_pool(seed + 10_001, 12)
    network = build().to(memory_format=torch.channels_last)
    matrices = [parameter for name, parameter in network.named_parameters() if "RDB" in name and parameter.ndim == 4]
    others = [parameter for name, parameter in network.named_parameters() if "RDB" not in name or parameter.ndim != 4]
    optimizer = Muon(matrices, [(others, rate)], matrix_rate=muon_rate)
    begin, step, spent = time.process_time(), 0, 0.0
    while spent < 1:
        spent = min(1.0, (time.process_time() - begin) / (60 * minutes))
        small, sharp = examples(pool, batch, rng)
        small = small.contiguous(memory_format=torch.channels_last)
        first, trunk, *upscale = network.model
        features = first(small)
        with fast_products():
            detail = trunk.sub(features)
        # the picture's own channels stay float32: bfloat16 has no more than 8 bits of brightness
        output = nn.Sequential(*upscale)(features + detail.float())
        loss = (output - sharp).abs().mean()
        loss.backward()
        optimizer.step(min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * spent)))
        step += 1
        if step % 100 == 0:
            logger.info("step %d, %.0f%% of the time, loss %.4f", step, 100 * spent, loss.item())
    out.mkdir(parents=True, exist_ok=True)
    save_file(export(network), out / "upscaler.safetensors")
    figures = {"steps": step, "minutes": minutes, "seed": seed, **evaluate(out / "upscaler.safetensors", held_out)}
    logger.info("held-out drawings: %s", figures)
    (out / "upscaler.json").write_text(json.dumps(figures) + "\n")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.5,
        help="of one core's time, so that a busy machine gives the same result, only later",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--muon-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=300)
    arguments = parser.parse_args()
    train(
        arguments.out,
        arguments.minutes,
        arguments.batch,
        arguments.rate,
        arguments.muon_rate,
        arguments.seed,
        arguments.pool,
    )


if __name__ == "__main__":
    main()
