"""Teaches the text encoders every wording: ``python -m training.models.rewording --models DIR --out DIR``.

The transformer knows the embeddings of usual captions. For a caption in another wording the encoders learn to give the
embeddings that they gave for the usual caption that says the same: CLIP's vector as a whole, T5's word by word. Flux
gives the words of a prompt no positions, so it does not matter where in the prompt a word is. Nearly half of the
captions are usual ones, whose embeddings are kept, so the transformer needs no further training.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from training.data.vocabulary import MAX_TOKENS, copy_small_letters, sample_caption, sample_reworded, widen_tokenizers
from training.data.wordings import mark, plain, spans
from training.models.muon import Muon
from training.models.precision import fast_products
from training.models.text_encoders import open_encoders, widened

logger = logging.getLogger(__name__)

UNCHANGED = 0.45
"""The share of captions in the usual form, whose embeddings are kept."""
EMPTY = 0.02
"""The share of empty captions among those."""
WEIGHTS = {"join": 0.3, "pad": 0.15}
"""How much words between and padding count; a word that means something counts 1."""


@dataclass(frozen=True)
class Pair:
    """A caption in some wording and the usual one that says the same, both marked."""

    worded: str
    usual: str


def marked_word_by_word(text: str) -> str:
    numbers = iter(range(MAX_TOKENS * 4))
    return re.sub(r"\w+", lambda match: mark(f"word{next(numbers)}", match[0]), text)


def sample_pair(rng: random.Random) -> Pair:
    if rng.random() < UNCHANGED:
        text = "" if rng.random() < EMPTY else marked_word_by_word(sample_caption(rng)[0])
        return Pair(text, text)
    worded, usual, _ = sample_reworded(rng)
    return Pair(worded, usual)


@dataclass(frozen=True)
class Tokens:
    ids: list[int]
    meanings: list[str]  # of every token: a mark's, "end", "pad", or "join" and the word


def tokens(marked: str, tokenizer: T5TokenizerFast) -> Tokens:
    text, marks = plain(marked), spans(marked)
    encoded = tokenizer(text, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_offsets_mapping=True)
    pieces, meanings = tokenizer.convert_ids_to_tokens(encoded.input_ids), []
    for piece, (begin, end) in zip(pieces, encoded.offset_mapping):
        begin += len(text[begin:end]) - len(text[begin:end].lstrip())
        inside = next(
            (name for name, (start, stop) in marks.items() if start <= begin and end <= stop and begin < end), None
        )
        meanings.append(inside or {"<pad>": "pad", "</s>": "end"}.get(piece, f"join {piece.lower()}"))
    return Tokens(encoded.input_ids, meanings)


def places_of(meaning: str, meanings: Sequence[str]) -> list[int]:
    """Where the usual caption says the same; for a word between that it lacks, all its words between."""
    return [i for i, other in enumerate(meanings) if other == meaning] or [
        i for i, other in enumerate(meanings) if other.split()[0] == meaning.split()[0]
    ]


def alignment(worded: Tokens, usual: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """What every token has to become, as shares of the usual caption's tokens (40 x 40); how much it counts (40)."""
    shares, counts = torch.zeros(MAX_TOKENS, MAX_TOKENS), torch.zeros(MAX_TOKENS)
    for i, meaning in enumerate(worded.meanings):
        there, here = (
            places_of(meaning, usual.meanings),
            [k for k, other in enumerate(worded.meanings) if other == meaning],
        )
        if not there:
            continue
        if worded.ids == usual.ids:
            there = [i]
        elif len(there) == len(here):
            there = [there[here.index(i)]]
        shares[i, there] = 1 / len(there)
        counts[i] = WEIGHTS.get(meaning.split()[0], 1.0)
    return shares, counts


@dataclass(frozen=True)
class Batch:
    """Captions in any wording and usual ones as both encoders' tokens, N x 40, and how T5's belong together."""

    clip: torch.Tensor
    t5: torch.Tensor
    usual_clip: torch.Tensor
    usual_t5: torch.Tensor
    shares: torch.Tensor
    counts: torch.Tensor


def make_batch(pairs: Sequence[Pair], clip: CLIPTokenizer, t5: T5TokenizerFast) -> Batch:
    def clip_ids(texts: list[str]) -> torch.Tensor:
        ids: torch.Tensor = clip(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    both = [(tokens(pair.worded, t5), tokens(pair.usual, t5)) for pair in pairs]
    aligned = [alignment(worded, usual) for worded, usual in both]
    return Batch(
        clip=clip_ids([plain(pair.worded) for pair in pairs]),
        t5=torch.tensor([worded.ids for worded, _ in both]),
        usual_clip=clip_ids([plain(pair.usual) for pair in pairs]),
        usual_t5=torch.tensor([usual.ids for _, usual in both]),
        shares=torch.stack([shares for shares, _ in aligned]),
        counts=torch.stack([counts for _, counts in aligned]),
    )


class Pupils:
    """Both encoders as they were, and the copies that learn."""

    def __init__(self, models: Path, tokenizers: Path) -> None:
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers / "tokenizer", trust_remote_code=False)
        self.t5_tokenizer = T5TokenizerFast.from_pretrained(tokenizers / "tokenizer_2", trust_remote_code=False)
        self.held = open_encoders(models)
        first = self.held[1].get_input_embeddings().num_embeddings
        self.clip, self.t5 = widened(self.held, len(self.clip_tokenizer), len(self.t5_tokenizer))
        added = [piece for piece, number in self.t5_tokenizer.get_vocab().items() if number >= first]
        copy_small_letters(self.t5.get_input_embeddings(), self.t5_tokenizer, added)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """How far T5's words and CLIP's vector are from those of the usual captions, in shares of their spread."""
        with torch.no_grad(), fast_products():
            usual_words, usual_pooled = (
                self.held[1](batch.usual_t5)[0].float(),
                self.held[0](batch.usual_clip).pooler_output.float(),
            )
        with fast_products():
            words, pooled = self.t5(batch.t5)[0].float(), self.clip(batch.clip).pooler_output.float()
        far = (words - batch.shares @ usual_words).square().mean(2) / usual_words.var()
        return (far * batch.counts).sum() / batch.counts.sum(), (
            pooled - usual_pooled
        ).square().mean() / usual_pooled.var()


def make_optimizer(clip: CLIPTextModel, t5: T5EncoderModel, rate: float) -> Muon:
    encoders = nn.ModuleList([clip, t5])
    named = dict(encoders.named_parameters())
    inner = {
        name
        for name, p in named.items()
        if p.ndim == 2 and not any(word in name for word in ("embed", "shared", "bias"))
    }
    places = [p for name, p in named.items() if "relative_attention_bias" in name]
    others = [p for name, p in named.items() if name not in inner and "relative_attention_bias" not in name]
    return Muon(
        [named[name] for name in named if name in inner], [(others, rate / 3), (places, rate * 3)], matrix_rate=rate
    )


def save(pupils: Pupils, out: Path, optimizer: Muon, step: int) -> None:
    pupils.clip.save_pretrained(out / "text_encoder")
    pupils.t5.save_pretrained(out / "text_encoder_2")
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, out / "rewording.part")
    (out / "rewording.part").replace(out / "rewording.pt")


def resume(pupils: Pupils, out: Path, optimizer: Muon) -> int:
    """Goes on where an interrupted run was; returns its step."""
    if not (out / "rewording.pt").exists():
        return 0
    state = torch.load(out / "rewording.pt", weights_only=True)
    for pupil, learnt in zip((pupils.clip, pupils.t5), open_encoders(out)):
        pupil.load_state_dict(learnt.state_dict())
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train(models: Path, out: Path, steps: int, size: int, rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    if not (out / "tokenizer_2").exists():
        logger.info("new words: %s", ", ".join(widen_tokenizers(models, out, seed)))
    pupils = Pupils(models, out)
    optimizer = make_optimizer(pupils.clip, pupils.t5, rate)
    step, begin, saved = resume(pupils, out, optimizer), time.monotonic(), time.monotonic()
    while step < steps:
        rng = random.Random(f"{seed} {step}")
        batch = make_batch([sample_pair(rng) for _ in range(size)], pupils.clip_tokenizer, pupils.t5_tokenizer)
        words, pooled = pupils.loss(batch)
        (words + pooled).backward()
        step += 1
        optimizer.step(min(1.0, step / 30) * max(0.01, min(1.0, (1 - step / steps) / 0.6)))
        if step % 20 == 0:
            logger.info(
                "step %d of %d, %.0f s, words %.4f, pooled %.4f",
                step,
                steps,
                time.monotonic() - begin,
                words.item(),
                pooled.item(),
            )
        if step == steps or time.monotonic() - saved > 120:
            save(pupils, out, optimizer, step)
            saved = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder with the tokenizers and text encoders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.models, arguments.out, arguments.steps, arguments.batch, arguments.rate, arguments.seed)


if __name__ == "__main__":
    main()
