"""Trains the Flux transformer on latents and captions: ``python -m training.models.transformer --models DIR --latents
FILE --minutes 80``.

Rectified flow as in Flux: the model sees ``(1 - t) * picture + t * noise`` and predicts ``noise - picture``. Captions
are dropped in a tenth of the samples. A share of the batches is what the detail pass draws: faces and hands near by,
with no more noise than it adds. In the last part guidance is distilled into the guidance embedding, as Flux dev's
authors did, so that a step costs one forward pass: the target is a frozen copy's own classifier-free guidance.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import random
import time
from pathlib import Path
from typing import NamedTuple, cast

import torch
from diffusers import FluxTransformer2DModel
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from training.data.figures import HAND_CLOSE_UP, Figures
from training.data.scene import Scene
from training.data.subjects import Subject, any_caption
from training.data.vocabulary import MAX_TOKENS
from training.models.latents import Bucket
from training.models.muon import Muon
from training.models.precision import fast_products

logger = logging.getLogger(__name__)

DETAIL_NOISE = 0.65
"""The detail pass starts at a strength of 0.4, which is a noise level of 0.52."""
GUIDANCE = (1.0, 6.0)
CAPTION_DROPOUT = 0.1
SHIFT = 1.6
"""The schedule's shift to the noisy side, where the composition is decided; in training and in the scheduler alike."""


def guidance_strength(guidance: torch.Tensor) -> torch.Tensor:
    """The weight of classifier-free guidance for a guidance scale: 3.5, Flux's usual one, is 2.5 here."""
    return 1 + 0.6 * (guidance - 1)


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


class TextEncoders:
    """Both frozen encoders: captions to T5 embeddings N x 40 x 192 and CLIP's pooled N x 128."""

    def __init__(self, folder: Path) -> None:
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
        self.t5_tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer_2", trust_remote_code=False)
        self.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", trust_remote_code=False).eval().float()
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", trust_remote_code=False).eval().float()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        t5_ids = self.t5_tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        clip_ids = self.clip_tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        with fast_products():
            return self.t5(t5_ids)[0].float(), self.clip(clip_ids).pooler_output.float()


def position_ids(width: int, height: int, factor: int) -> torch.Tensor:
    """Row and column of every token, (rows * columns) x 3, as ``FluxPipeline._prepare_latent_image_ids`` gives them."""
    rows, columns = height // factor, width // factor
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None]
    return ids.view(-1, 3)


def predict(
    model: torch.nn.Module,
    noisy: torch.Tensor,
    t: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    guidance: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    # at a hundred tokens plain matrix products are faster backwards than the blockwise kernel, by a third of the whole
    # pass
    with fast_products(), sdpa_kernel(SDPBackend.MATH):
        output: torch.Tensor = model(
            hidden_states=noisy,
            timestep=t,
            guidance=guidance,
            pooled_projections=text[1],
            encoder_hidden_states=text[0],
            txt_ids=torch.zeros(MAX_TOKENS, 3),
            img_ids=ids,
            return_dict=False,
        )[0]
    return output.float()


class Batch(NamedTuple):
    """Pictures of one size: tokens N x (rows * columns) x 64, their position ids, N captions, and the noise level that
    they have at most."""

    tokens: torch.Tensor
    ids: torch.Tensor
    texts: list[str]
    most_noise: float


class Batches:
    """Endless batches, sizes in turn by how many pictures they have. ``details`` is the share of those with pictures of
    faces and hands near by, at little noise."""

    def __init__(
        self, buckets: list[Bucket], size: int, seed: int, other_words: float = 0.0, details: float = 0.0
    ) -> None:
        self.buckets, self.size, self.rng, self.other_words = buckets, size, random.Random(seed), other_words
        self.details = details
        self.every = [range(len(bucket.scenes)) for bucket in buckets]
        self.near = [[i for i, one in enumerate(bucket.scenes) if is_near(one)] for bucket in buckets]

    def __next__(self) -> Batch:
        detail = self.rng.random() < self.details
        pictures = self.near if detail else self.every
        index = self.rng.choices(range(len(self.buckets)), [len(of_size) for of_size in pictures])[0]
        bucket, picked = self.buckets[index], self.rng.choices(pictures[index], k=self.size)
        texts = [self.words(bucket.scenes[i]) for i in picked]
        ids = position_ids(bucket.width, bucket.height, 32)
        return Batch(bucket.tokens[picked].float(), ids, texts, DETAIL_NOISE if detail else 1.0)

    def words(self, subject: Subject) -> str:
        return "" if self.rng.random() < CAPTION_DROPOUT else any_caption(subject, self.rng, self.other_words)


def is_near(subject: Subject) -> bool:
    """Whether the picture is filled as a crop of the detail pass is."""
    scene = subject.scene if isinstance(subject, Figures) else subject
    return isinstance(scene, Scene) and scene.framing in ("close-up", HAND_CLOSE_UP)


def noise_levels(count: int) -> torch.Tensor:
    """Logit-normal noise levels in 0..1, stratified over the batch, shifted by ``SHIFT``."""
    uniform = (torch.randperm(count) + torch.rand(count)) / count
    t = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-4, 1 - 1e-4) - 1))
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def training_loss(
    model: torch.nn.Module, encoders: TextEncoders, batches: Batches, teacher: torch.nn.Module | None
) -> torch.Tensor:
    tokens, ids, texts, most_noise = next(batches)
    count = len(tokens)
    t, noise = most_noise * noise_levels(count), torch.randn_like(tokens)
    noisy = torch.lerp(tokens, noise, t[:, None, None])
    text = encoders(texts)
    if teacher is None:
        return functional.mse_loss(predict(model, noisy, t, text, torch.ones(count), ids), noise - tokens)
    guidance = torch.empty(count).uniform_(*GUIDANCE)
    with torch.no_grad():
        worded = predict(teacher, noisy, t, text, torch.ones(count), ids)
        sequence, pooled = (part.expand(count, *part.shape[1:]) for part in encoders([""]))
        wordless = predict(teacher, noisy, t, (sequence, pooled), torch.ones(count), ids)
        target = wordless + guidance_strength(guidance)[:, None, None] * (worded - wordless)
    return functional.mse_loss(predict(model, noisy, t, text, guidance, ids), target)


def make_optimizer(model: FluxTransformer2DModel, rate: float) -> Muon:
    inner = {name for name, p in model.named_parameters() if p.ndim == 2 and "transformer_blocks" in name}
    matrices = [p for name, p in model.named_parameters() if name in inner]
    others = [p for name, p in model.named_parameters() if name not in inner]
    return Muon(matrices, [(others, rate / 8)], matrix_rate=rate, weight_decay=0.02)


def learning_rate(step: int, spent: float) -> float:
    """The share of the full rate: it rises for 60 steps and falls over the last 60 percent of the time."""
    return min(1.0, (step + 1) / 60) * max(0.02, min(1.0, (1 - spent) / 0.6))


def begin_or_resume(out: Path, rate: float) -> tuple[FluxTransformer2DModel, Muon]:
    """The model and the optimizer that ``save`` left in ``out``, or new ones."""
    model = (
        FluxTransformer2DModel.from_pretrained(out, trust_remote_code=False).float()
        if (out / "config.json").exists()
        else build()
    )
    optimizer = make_optimizer(model, rate)
    if (out / "optimizer.pt").exists():
        optimizer.load_state_dict(torch.load(out / "optimizer.pt", weights_only=True))
    return model, optimizer


def save(out: Path, average: FluxTransformer2DModel, optimizer: Muon) -> None:
    average.save_pretrained(out)
    torch.save(optimizer.state_dict(), out / "optimizer.part")
    (out / "optimizer.part").replace(out / "optimizer.pt")


def read_buckets(files: list[Path]) -> list[Bucket]:
    """The pictures of all files, a bucket a size."""
    return [bucket for file in files for bucket in torch.load(file, weights_only=False)]


def train(
    models: Path,
    latents: list[Path],
    out: Path,
    minutes: float,
    distill_share: float,
    batch: int,
    rate: float,
    seed: int,
    compiled: bool,
    undistilled: Path | None,
    other_words: float,
    details: float,
) -> None:
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    encoders = TextEncoders(models)
    batches = Batches(read_buckets(latents), batch, seed, other_words, details)
    model, optimizer = begin_or_resume(out, rate)
    average = copy.deepcopy(model).requires_grad_(False)
    runner = cast(torch.nn.Module, torch.compile(model, dynamic=True)) if compiled else model
    teacher: torch.nn.Module | None = None
    if undistilled:
        teacher = FluxTransformer2DModel.from_pretrained(undistilled, trust_remote_code=False).float().eval()
    distill_share = 1.0 if undistilled else distill_share
    begin, step, spent, shown, saved = time.monotonic(), 0, 0.0, 0.0, 0.0
    while spent < 1:
        spent = (time.monotonic() - begin) / (60 * minutes)
        if teacher is None and spent > 1 - distill_share:
            logger.info("step %d: guidance is distilled from here on", step)
            average.save_pretrained(out / "undistilled")
            teacher = copy.deepcopy(average).eval()
            model.load_state_dict(average.state_dict())
        local = spent / (1 - distill_share) if teacher is None else (spent - 1 + distill_share) / distill_share
        loss = training_loss(runner, encoders, batches, teacher)
        loss.backward()
        optimizer.step(learning_rate(step, local) * (1.0 if teacher is None else 0.6))
        step += 1
        decay = min(0.998 if teacher is None else 0.99, step / (step + 30))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        shown = loss.item() if step == 1 else 0.98 * shown + 0.02 * loss.item()
        if step % 50 == 0:
            speed = step * batch / (time.monotonic() - begin)
            logger.info("step %d, %.1f%% of the time, %.1f samples/s, loss %.4f", step, 100 * spent, speed, shown)
        if time.monotonic() - saved > 240 or spent >= 1:
            save(out, average, optimizer)
            saved = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder with the tokenizers and text encoders")
    parser.add_argument("--latents", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument(
        "--distill-share",
        type=float,
        default=0.12,
        help="share of the time, at the end, in which guidance is distilled",
    )
    parser.add_argument(
        "--undistilled", type=Path, help="only goes on distilling the guidance of the model in this folder"
    )
    parser.add_argument(
        "--other-words", type=float, default=0.0, help="share of captions that are not in the usual form"
    )
    parser.add_argument("--details", type=float, default=0.2, help="share of batches as the detail pass draws them")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler; a quarter faster"
    )
    arguments = parser.parse_args()
    train(
        arguments.models,
        arguments.latents,
        arguments.out,
        arguments.minutes,
        arguments.distill_share,
        arguments.batch,
        arguments.rate,
        arguments.seed,
        arguments.compile,
        arguments.undistilled,
        arguments.other_words,
        arguments.details,
    )


if __name__ == "__main__":
    main()
