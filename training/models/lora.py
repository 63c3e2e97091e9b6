"""Trains a LoRA of a style on the embedded model: ``python -m training.models.lora --style pencil --minutes 6``.

The drawings are those of the model's own training, in another style, with their usual captions. So the style needs no
word of its own: it is there as far as the LoRA is. Guidance is 1, at which the model predicts what it was shown.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from backend.core.settings import ROOT
from training.data.drawing import draw_scene
from training.data.scene import sample_scene
from training.data.styles import STYLES
from training.models.batches import Batches, Pictures, Tokenizers
from training.models.latents import Bucket, encode
from training.models.precision import best_device
from training.models.transformer import TextEncoders, open_transformer, velocity_loss

logger = logging.getLogger(__name__)

EMBEDDED = ROOT / "weights" / "embedded"
SIDE = 256
TARGETS = r".*transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.0\.proj|ff\.net\.2|proj_mlp|proj_out)"
"""The layers that work on the picture."""


def styled_bucket(autoencoder: AutoencoderKL, style: str, count: int, rng: random.Random) -> Bucket:
    """Drawings in the style as latents."""
    scenes = [sample_scene(rng, (SIDE, SIDE)) for _ in range(count)]
    tokens = []
    for scene in scenes:
        pixels = np.asarray(
            STYLES[style](draw_scene(scene).convert("RGB")).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        )
        tokens.append(encode(autoencoder, pixels[None]))
    return Bucket(SIDE, SIDE, torch.cat(tokens), list(scenes))


def train(
    folder: Path,
    style: str,
    out: Path,
    minutes: float,
    count: int,
    rank: int,
    batch: int,
    rate: float,
    device: torch.device,
) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae", trust_remote_code=False).float().to(device)
    buckets = [styled_bucket(autoencoder, style, count, rng)]
    batches, pictures = iter(Batches(buckets, Tokenizers(folder), batch, 0)), Pictures(buckets, device)
    encoders = TextEncoders(folder).requires_grad_(False).to(device)
    model = open_transformer(folder / "transformer").to(device)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    logger.info("%d pictures; %d weights are trained", count, sum(one.numel() for one in weights))
    begin, step, shown, spent = time.monotonic(), 0, 0.0, 0.0
    while spent < 1:
        spent = (time.monotonic() - begin) / (60 * minutes)
        some = next(batches)
        loss = velocity_loss(model, encoders, *pictures.of(some), some)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, max(0.02, 2 * (1 - spent)))
        optimizer.step()
        step += 1
        shown = loss.item() if step == 1 else 0.95 * shown + 0.05 * loss.item()
        if step % 25 == 0:
            logger.info("step %d, %.0f%% of the time, loss %.4f", step, 100 * spent, shown)
    tensors = {f"transformer.{name}": one.half().contiguous() for name, one in get_peft_model_state_dict(model).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out, {"format": "pt"})
    logger.info("%s: %d steps, %.0f kB", out.name, step, out.stat().st_size / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=EMBEDDED / "flux", help="the model in diffusers' layout")
    parser.add_argument("--style", choices=STYLES, required=True)
    parser.add_argument("--out", type=Path, help="the file; by default in weights/embedded/loras")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--device", type=torch.device, default=best_device(), help="the GPU where there is one")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = arguments.out or EMBEDDED / "loras" / f"{arguments.style}.safetensors"
    train(
        arguments.models,
        arguments.style,
        out,
        arguments.minutes,
        arguments.pictures,
        arguments.rank,
        arguments.batch,
        arguments.rate,
        arguments.device,
    )


if __name__ == "__main__":
    main()
