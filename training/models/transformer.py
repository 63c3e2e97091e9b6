"""Trains the Flux transformer on latents and captions: ``python -m training.models.transformer --models DIR --latents
FILE --out DIR --minutes 80``.

Rectified flow as in Flux: the model sees ``(1 - t) * picture + t * noise`` and predicts ``noise - picture``. Captions
are dropped in a tenth of the samples. A share of the batches is what the detail pass draws: faces and hands near by,
with no more noise than it adds. Guidance comes afterwards, by ``training/models/guidance.py``.

With ``--encoders-rate`` the text encoders learn from the pictures too, and are saved beside the transformer with
their tokenizers.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from training.data.vocabulary import MAX_TOKENS
from training.models.batches import Batch, Lessons
from training.models.descent import descend
from training.models.muon import Muon
from training.models.precision import attention_kernels, best_device, fast_products
from training.models.rewording import make_optimizer as make_encoders_optimizer
from training.models.text_encoders import open_encoders

logger = logging.getLogger(__name__)

SHIFT = 1.6
"""The schedule's shift to the noisy side, where the composition is decided; in training and in the scheduler alike."""


def build() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=192,
        pooled_projection_dim=128,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


class TextEncoders(nn.Module):
    """Both encoders: token ids as ``Tokenizers`` gives them to T5's embeddings, N x 40 x 192, and CLIP's pooled ones,
    N x 128."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        clip, t5 = open_encoders(folder)
        self.clip, self.t5 = clip.eval(), t5.eval()

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with fast_products(ids.device), attention_kernels(ids.device):
            return self.t5(ids[0])[0].float(), self.clip(ids[1]).pooler_output.float()

    def save(self, out: Path) -> None:
        self.clip.save_pretrained(out / "text_encoder")
        self.t5.save_pretrained(out / "text_encoder_2")


class Generator(nn.Module):
    """The transformer and the text encoders that it listens to."""

    def __init__(self, transformer: FluxTransformer2DModel, encoders: TextEncoders) -> None:
        super().__init__()
        self.transformer, self.encoders = transformer, encoders


def predict(
    model: nn.Module,
    noisy: torch.Tensor,
    t: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    guidance: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    with fast_products(noisy.device), attention_kernels(noisy.device):
        output: torch.Tensor = model(
            hidden_states=noisy,
            timestep=t,
            guidance=guidance,
            pooled_projections=text[1],
            encoder_hidden_states=text[0],
            txt_ids=torch.zeros(MAX_TOKENS, 3, device=noisy.device),
            img_ids=ids,
            return_dict=False,
        )[0]
    return output.float()


def noise_levels(count: int, device: torch.device) -> torch.Tensor:
    """Logit-normal noise levels in 0..1, stratified over the batch, shifted by ``SHIFT``."""
    uniform = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    t = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-4, 1 - 1e-4) - 1))
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def velocity_loss(
    model: nn.Module, encoders: TextEncoders, tokens: torch.Tensor, ids: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """How far the prediction is from the way from the picture to the noise."""
    count, device = len(tokens), tokens.device
    t, noise = batch.most_noise * noise_levels(count, device), torch.randn_like(tokens)
    noisy = torch.lerp(tokens, noise, t[:, None, None])
    velocity = predict(model, noisy, t, encoders(batch.words.to(device)), torch.ones(count, device=device), ids)
    return functional.mse_loss(velocity, noise - tokens)


def make_optimizer(model: FluxTransformer2DModel, rate: float) -> Muon:
    inner = {name for name, p in model.named_parameters() if p.ndim == 2 and "transformer_blocks" in name}
    matrices = [p for name, p in model.named_parameters() if name in inner]
    others = [p for name, p in model.named_parameters() if name not in inner]
    return Muon(matrices, [(others, rate / 8)], matrix_rate=rate, weight_decay=0.02)


def open_transformer(folder: Path) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(folder, trust_remote_code=False).float()


def open_generator(models: Path, out: Path) -> Generator:
    """What an earlier run left in ``out``; else a new transformer, and the text encoders of ``models``."""
    transformer = open_transformer(out) if (out / "config.json").exists() else build()
    return Generator(transformer, TextEncoders(out if (out / "text_encoder").exists() else models))


def save_state(optimizers: list[Muon], file: Path) -> None:
    torch.save([optimizer.state_dict() for optimizer in optimizers], file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def train(lessons: Lessons, out: Path, minutes: float, rate: float, encoders_rate: float, compiled: bool) -> None:
    torch.manual_seed(lessons.seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizers, pictures, batches = lessons.opened()
    learner = open_generator(lessons.models, out).to(lessons.device)
    optimizers = [make_optimizer(learner.transformer, rate)]
    learner.encoders.requires_grad_(encoders_rate > 0)
    if encoders_rate > 0:
        tokenizers.save(out)
        optimizers.append(make_encoders_optimizer(learner.encoders.clip, learner.encoders.t5, encoders_rate))
    if (out / "optimizer.pt").exists():
        for optimizer, state in zip(optimizers, torch.load(out / "optimizer.pt", weights_only=True), strict=True):
            optimizer.load_state_dict(state)
    model: nn.Module = learner.transformer
    if compiled:
        model = torch.compile(model, dynamic=True)  # type: ignore[assignment]

    def loss() -> torch.Tensor:
        some = next(batches)
        return velocity_loss(model, learner.encoders, *pictures.of(some), some)

    def save(average: Generator) -> None:
        average.transformer.save_pretrained(out)
        if encoders_rate > 0:
            average.encoders.save(out)
        save_state(optimizers, out / "optimizer.pt")

    descend(learner, optimizers, loss, minutes, 0.998, save)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What the transformer's training and the distillation of its guidance both take."""
    parser.add_argument("--models", type=Path, required=True, help="folder with the tokenizers and text encoders")
    parser.add_argument("--latents", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--other-words", type=float, default=0.0, help="share of captions that are not in the usual form"
    )
    parser.add_argument("--details", type=float, default=0.2, help="share of batches as the detail pass draws them")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler; a quarter faster"
    )
    parser.add_argument("--device", type=torch.device, default=best_device(), help="the GPU where there is one")


def lessons_of(given: argparse.Namespace) -> Lessons:
    return Lessons(given.models, given.latents, given.batch, given.seed, given.other_words, given.details, given.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--encoders-rate", type=float, default=0.0, help="of the text encoders' matrices; 0: they stay")
    given = parser.parse_args()
    train(lessons_of(given), given.out, given.minutes, given.rate, given.encoders_rate, given.compile)


if __name__ == "__main__":
    main()
