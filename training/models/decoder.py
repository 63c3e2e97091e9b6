"""Trains a deeper decoder on frozen latents: ``python -m training.models.decoder --start weights/embedded/flux/vae
--redrawn FILES --out DIR --minutes 90``.

The encoder and so the latents stay what they are, and the transformer with them. Where nothing is in DIR yet, the
decoder gets one more layer in every block, which at first changes nothing. It learns from two kinds of latents: the
encoder's, and those of drawings that the generator has redrawn (``training/models/redrawn_latents.py``). For the second
kind no single answer is right, and the mean of all is soft; so a discriminator of patches looks at them beside drawings
(PatchGAN: Isola et al. 2017, with the hinge loss), the decoder must come close to the drawing in the discriminator's
own features, and its edges must be as strong as the drawing's.

``--generated`` has files of latents that were redrawn at high strengths, where nothing stays in its place. Of them it
learns only that pictures are as crisp as drawings, and what the discriminator says. That costs accuracy, of which the
mean with the weights before (``--share``) gives back more than it costs in crispness.

With ``--encoder`` the encoder learns too. The transformer stays valid, because the redrawn latents, which are its own,
hold the decoder to what they mean.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before diffusers is imported

from diffusers import AutoencoderKL  # noqa: E402

from training.models.autoencoder import (  # noqa: E402
    MOST_FOR_ENCODER,
    MOST_NOISE,
    add_noise,
    crops,
    draw_pool,
    held_out_pools,
    make_optimizer,
    reconstruction_loss,
    reconstruction_psnr,
    to_tensor,
)
from training.models.precision import best_device, fast_products  # noqa: E402
from training.models.redrawn_latents import load_redrawn  # noqa: E402

logger = logging.getLogger(__name__)

ADVERSARIAL, FEATURES = 0.02, 0.3
"""Weights of the discriminator's verdict and of the distance in its features, beside the reconstruction."""
SQUARED, CRISPNESS, ENERGY, WINDOW = 32.0, 4.0, 0.1, 8
"""Weights of the squared error in the reconstruction, and beside it of a difference in gradients and of one in the
logarithm of a whole picture's gradient energy; and the pixels of the squares in which gradients are compared."""
REDRAWN, GENERATED_ENERGY = 0.5, 0.3
"""The weights of all that is said of redrawn latents, and therein of the gradient energy of generated pictures."""
ADVERSARIAL_FROM = 0.2
"""The share of the time after which the discriminator joins: before that the new layers would only feed it noise."""
CROPS, REDRAWN_SIDE = 3, 10
"""Crops of 128 x 128 with the encoder's latents beside every redrawn picture, and how many latents along each side of
that one are decoded: a picture of 160 x 160."""


def deepened(model: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder with one more layer in every block, which adds nothing yet.

    diffusers has one number of layers for both sides, so the encoder gets such layers too; they are never trained.
    """
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    deeper = AutoencoderKL.from_config({**settings, "layers_per_block": settings["layers_per_block"] + 1})
    missing = set(deeper.load_state_dict(model.state_dict(), strict=False).missing_keys)
    with torch.no_grad():
        for name, parameter in deeper.named_parameters():
            if name in missing and ".conv2." in name:
                parameter.zero_()
    return deeper


def gradients(pictures: torch.Tensor) -> torch.Tensor:
    """Of N x 3 x H x W pictures the root of the mean squared gradient in every square of ``WINDOW`` pixels."""
    across, down = pictures.diff(dim=-1)[..., :-1, :], pictures.diff(dim=-2)[..., :-1]
    energy = functional.avg_pool2d(across.square() + down.square(), WINDOW, ceil_mode=True)
    return (energy + 1e-5).sqrt()


def log_energy(pictures: torch.Tensor) -> torch.Tensor:
    """Of N x 3 x H x W pictures the logarithm of each one's gradient energy."""
    energy = pictures.diff(dim=-1).square().mean((1, 2, 3)) + pictures.diff(dim=-2).square().mean((1, 2, 3))
    return (energy + 1e-5).log()


def drawn_loss(made: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """How far pictures are from the drawings: in their pixels, and in how crisp they are. Where the place of an edge is
    uncertain, the pixels alone ask for a soft one; and squares alone for fewer edges than there are, because which
    square has one is uncertain too."""
    error = made - drawn
    crispness = (gradients(made) - gradients(drawn)).abs().mean()
    energy = (log_energy(made) - log_energy(drawn)).abs().mean()
    return reconstruction_loss(error, SQUARED) + CRISPNESS * crispness + ENERGY * energy


class Discriminator(nn.Module):
    """Says of every patch of 22 pixels whether it is drawn; gives its verdicts and the features on the way."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = ((3, width, 2), (width, 2 * width, 2), (2 * width, 3 * width, 1))
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(a, b, 4, stride, 1)) for a, b, stride in sizes
        )
        self.verdict = nn.utils.parametrizations.spectral_norm(nn.Conv2d(sizes[-1][1], 1, 3, 1, 1))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = []
        for layer in self.layers:
            pictures = functional.leaky_relu(layer(pictures), 0.2)
            features.append(pictures)
        return self.verdict(pictures), features


def judge_step(judge: Discriminator, optimizer: torch.optim.Optimizer, drawn: torch.Tensor, made: torch.Tensor) -> None:
    """One step of the discriminator, with the hinge loss."""
    with fast_products(drawn.device):
        real, fake = judge(drawn)[0].float(), judge(made.detach())[0].float()
    loss = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def judged_loss(judge: Discriminator, drawn: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The discriminator's verdict on the decoder's pictures, and how far its features are from the drawings'."""
    with fast_products(drawn.device):
        verdict, features = judge(made)
        with torch.no_grad():
            _, wanted = judge(drawn)
    apart = [(a.float() - b.float()).abs().mean() / b.float().abs().mean() for a, b in zip(features, wanted)]
    loss: torch.Tensor = -ADVERSARIAL * verdict.float().mean() + FEATURES * torch.stack(apart).mean()
    return loss


def generated_loss(judge: Discriminator, drawn: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Of pictures that show what others do, but not in the same place: the discriminator's verdict, and how far the
    mean of their gradient energies is from the drawings'."""
    with fast_products(drawn.device):
        verdict = judge(made)[0].float().mean()
    energy = (log_energy(made).mean() - log_energy(drawn).mean()).abs()
    loss: torch.Tensor = GENERATED_ENERGY * energy - ADVERSARIAL * verdict
    return loss


class Pairs:
    """Endless batches of redrawn latents, and the drawings that they were made from."""

    def __init__(self, files: Sequence[Path], batch: int, device: torch.device) -> None:
        redrawn = [load_redrawn(file) for file in files]
        self.latents = torch.cat([part.latents for part in redrawn]).to(device)
        self.pictures = torch.cat([part.pictures for part in redrawn]).to(device)
        self.batch = batch

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same part of all."""
        chosen = torch.randint(len(self.latents), (self.batch,), device=self.latents.device)
        across, side = self.latents.shape[-1], REDRAWN_SIDE
        scale = self.pictures.shape[1] // across
        top, left = (int(corner) for corner in torch.randint(across - side + 1, (2,)))
        latents = self.latents[chosen, :, top : top + side, left : left + side].float()
        rows, columns = (slice(scale * begin, scale * (begin + side)) for begin in (top, left))
        return latents, to_tensor(self.pictures[chosen, rows, columns])


def copies(model: AutoencoderKL, drawn: torch.Tensor, encoder: bool) -> torch.Tensor:
    """Drawings through the autoencoder, with noise on their latents; ``encoder``: it learns from them too."""
    with torch.set_grad_enabled(encoder):
        own = model.encoder(drawn)[:, :16].float()
    copied: torch.Tensor = model.decoder(add_noise(own, MOST_FOR_ENCODER if encoder else MOST_NOISE))
    return copied.float()


@dataclass(frozen=True)
class Material:
    """Drawings, redrawn pictures and, if any, generated ones, ``batch`` in a step."""

    pool: torch.Tensor
    pairs: Pairs
    generated: Pairs | None
    batch: int


def loss_of_step(
    model: AutoencoderKL, judge: Discriminator, judging: torch.optim.Optimizer | None, shown: Material, encoder: bool
) -> torch.Tensor:
    """On new pictures of every kind. The discriminator takes part, and learns, if there is an optimizer for it."""
    drawn = crops(shown.pool, CROPS * shown.batch)
    latents, meant = shown.pairs.take()
    with fast_products(drawn.device):
        copied, restored = copies(model, drawn, encoder), model.decoder(latents).float()
    loss = drawn_loss(copied, drawn) + REDRAWN * drawn_loss(restored, meant)
    if judging:
        judge_step(judge, judging, meant, restored)
        loss = loss + REDRAWN * judged_loss(judge, meant, restored)
    if shown.generated:
        latents, wanted = shown.generated.take()
        with fast_products(drawn.device):
            made = model.decoder(latents).float()
        loss = loss + REDRAWN * generated_loss(judge, wanted, made)
    return loss


@dataclass(frozen=True)
class Course:
    """How long and how it is trained: ``batch`` redrawn pictures a step and a ``pool`` of drawings; ``encoder``: that
    too; ``share``: of the trained weights in the mean with those before."""

    minutes: float
    batch: int
    rate: float
    seed: int
    pool: int
    device: torch.device
    encoder: bool
    share: float


def train(start: Path, redrawn: Sequence[Path], generated: Sequence[Path], out: Path, course: Course) -> None:
    """Saves the mean of the weights into ``out`` all the time; where ``out`` has one it goes on from there."""
    torch.manual_seed(course.seed)
    device, batch = course.device, course.batch
    found = (out / "config.json").exists()
    model = AutoencoderKL.from_pretrained(out if found else start, trust_remote_code=False).float()
    model = (model if found else deepened(model)).to(device)
    optimizer = make_optimizer(model, None if course.encoder else "decoder", course.rate)
    judge = Discriminator().to(device)
    state = out / "discriminator.pt"
    if state.exists():
        judge.load_state_dict(torch.load(state, weights_only=True))
    judging = torch.optim.Adam(judge.parameters(), 2e-4, betas=(0.5, 0.9))
    free = Pairs(generated, batch, device) if generated else None
    shown = Material(draw_pool(course.seed, course.pool).to(device), Pairs(redrawn, batch, device), free, batch)
    held_out = held_out_pools(0, 24)
    average, before = (copy.deepcopy(model).requires_grad_(False) for _ in range(2))
    begin, step, spent = time.monotonic(), 0, 0.0
    while spent < 1:
        spent = (time.monotonic() - begin) / (60 * course.minutes)
        judges = state.exists() or spent > ADVERSARIAL_FROM
        loss = loss_of_step(model, judge, judging if judges else None, shown, course.encoder)
        loss.backward()
        optimizer.step(min(1.0, (step + 1) / 50) * max(0.01, min(1.0, (1 - spent) / 0.5)))
        step += 1
        decay = min(0.995, step / (step + 20))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if spent >= 1:
            torch._foreach_lerp_(list(average.parameters()), list(before.parameters()), 1 - course.share)
        if step % 150 == 0 or spent >= 1:
            psnr = {name: round(reconstruction_psnr(average, pictures), 2) for name, pictures in held_out.items()}
            logger.info("step %d, %.0f%%, loss %.4f, held-out PSNR in dB: %s", step, 100 * spent, loss.item(), psnr)
            average.save_pretrained(out)
            if spent > ADVERSARIAL_FROM:
                torch.save(judge.state_dict(), state)
    (out / "training.json").write_text(json.dumps({"steps": step, "psnr_db": psnr, "minutes": course.minutes}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, required=True, help="the folder of the autoencoder to begin with")
    parser.add_argument("--redrawn", type=Path, nargs="+", required=True)
    parser.add_argument("--generated", type=Path, nargs="*", default=[], help="as --redrawn, at high strengths")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=2, help="redrawn pictures in a step")
    parser.add_argument("--rate", type=float, default=0.012)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--device", type=torch.device, default=best_device(), help="the GPU where there is one")
    parser.add_argument("--encoder", action="store_true", help="train the encoder as well")
    parser.add_argument("--share", type=float, default=1.0, help="of the trained weights in the mean with those before")
    given = vars(parser.parse_args())
    course = Course(**{field.name: given[field.name] for field in fields(Course)})
    train(given["start"], given["redrawn"], given["generated"], given["out"], course)


if __name__ == "__main__":
    main()
