"""Trains the tokenizers and both text encoders on captions alone: ``python -m training.text_encoders --out DIR``.

The T5 encoder learns to say, for every person of a caption, which colour belongs to which noun. The transformer that is
trained on top of it then finds "shirt: blue" in the embeddings and need not learn grammar from pictures.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import re
import string
import time
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from training.captions import caption
from training.held_out import held_out_prompts
from training.muon import Muon
from training.precision import fast_products
from training.scene import BACKGROUND_COLOURS, EXPRESSIONS, HAIR_COLOURS, HAT_COLOURS, KINDS, SHIRT_COLOURS, SKIN_TONES, Scene, sample_scene

logger = logging.getLogger(__name__)

MAX_TOKENS = 40
"""Length to which T5 captions are padded. Flux attends to padding too, so it must be the same at inference."""

PEOPLE = 3
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "hair_colour": tuple(HAIR_COLOURS),
    "hair_length": ("short", "long", "bald"),
    "skin": tuple(SKIN_TONES),
    "expression": EXPRESSIONS,
    "shirt": tuple(SHIRT_COLOURS),
    "glasses": ("False", "True"),
    "beard": ("False", "True"),
    "hat": ("None", *HAT_COLOURS),
}
IGNORED = -100


def questions() -> list[int]:
    """The number of answers of each question: every attribute of three people, the background, the head count, the framing."""
    return [len(values) for values in ATTRIBUTES.values()] * PEOPLE + [len(BACKGROUND_COLOURS), PEOPLE, 3]


def answers(scene: Scene) -> list[int]:
    labels: list[int] = []
    for index in range(PEOPLE):
        for name, values in ATTRIBUTES.items():
            labels.append(values.index(str(getattr(scene.people[index], name))) if index < len(scene.people) else IGNORED)
    return [*labels, list(BACKGROUND_COLOURS).index(scene.background), len(scene.people) - 1, ("close-up", "portrait", "half-body").index(scene.framing)]


def sample_caption(rng: random.Random) -> tuple[str, Scene]:
    scene = sample_scene(rng)
    text = caption(scene, rng)
    return (text[0].upper() + text[1:] if rng.random() < 0.25 else text), scene


def train_tokenizers(seed: int) -> tuple[CLIPTokenizer, T5TokenizerFast]:
    rng = random.Random(seed)
    corpus = [sample_caption(rng)[0].lower() for _ in range(20_000)]
    letters = sorted(set(string.printable) - set(string.whitespace))
    counts = Counter(piece for text in corpus for piece in re.findall(r"[a-z]+|[^a-z\s]", text))
    # whole words, so that a caption is short; single letters spell the words that no caption has
    pieces = {f"▁{form}": math.log(count / 1e6) for word, count in counts.items() if word.isalpha() for form in (word, word.capitalize())}
    pieces |= {word: math.log(count / 1e6) for word, count in counts.items()}
    pieces |= {letter: -20.0 for letter in ["▁", *letters] if letter not in pieces}
    t5 = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces.items()], extra_ids=0, model_max_length=MAX_TOKENS)

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.WhitespaceSplit()])
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", initial_alphabet=letters))
    state = json.loads(bpe.to_str())["model"]
    vocabulary = list(state["vocab"])
    for letter in letters:
        vocabulary += [piece for piece in (letter, f"{letter}</w>") if piece not in state["vocab"]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=[tuple(m) for m in state["merges"]], model_max_length=MAX_TOKENS)
    return clip, t5


def build_encoders(clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5TokenizerFast) -> tuple[CLIPTextModel, T5EncoderModel]:
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=128,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=192,
            d_kv=32,
            d_ff=512,
            num_layers=4,
            num_heads=6,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=32,
            relative_attention_max_distance=64,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return clip, t5


class Readout(nn.Module):
    """One attention hop from a learnt question to the token embeddings, then the answer: what the transformer can do too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        counts = questions()
        self.query = nn.Parameter(torch.randn(len(counts), width) * 0.02)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in counts)

    def forward(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        found, _ = self.attention(self.query.expand(len(embeddings), -1, -1), embeddings, embeddings, need_weights=False)
        return [head(found[:, i]) for i, head in enumerate(self.heads)]


def answer_loss(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [functional.cross_entropy(guess, labels[:, i], ignore_index=IGNORED) for i, guess in enumerate(logits) if (labels[:, i] != IGNORED).any()]
    ).mean()


@torch.no_grad()
def colours_named(t5: T5EncoderModel, readout: Readout, tokenizer: T5TokenizerFast, seeds: range = range(100, 110)) -> dict[str, float]:
    """The share of held-out prompts in which the embeddings say the first person's hair and shirt and the background."""
    prompts = [prompt for seed in seeds for prompt in held_out_prompts(seed)]
    ids = tokenizer([text for text, _ in prompts], padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
    logits, attributes = readout(t5(ids)[0]), list(ATTRIBUTES)
    questions_asked = {
        "hair": (attributes.index("hair_colour"), list(HAIR_COLOURS)),
        "shirt": (attributes.index("shirt"), list(SHIRT_COLOURS)),
        "background": (len(attributes) * PEOPLE, list(BACKGROUND_COLOURS)),
    }
    right: dict[str, float] = {}
    for noun, (question, colours) in questions_asked.items():
        named = [colours[answer] for answer in logits[question].argmax(1)]
        right[noun] = sum(name == asked[noun] for name, (_, asked) in zip(named, prompts, strict=True)) / len(prompts)
    return right


def train(out: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    clip_tokenizer, t5_tokenizer = train_tokenizers(seed)
    clip_tokenizer.save_pretrained(out / "tokenizer")
    t5_tokenizer.save_pretrained(out / "tokenizer_2")
    clip_tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    t5_tokenizer = T5TokenizerFast.from_pretrained(out / "tokenizer_2")
    clip, t5 = build_encoders(clip_tokenizer, t5_tokenizer)
    readout = Readout(192)
    pooled_heads = nn.ModuleList(nn.Linear(128, count) for count in questions())
    encoders = nn.ModuleList([clip, t5])
    inner = {name for name, p in encoders.named_parameters() if p.ndim == 2 and "embed" not in name and "shared" not in name and "bias" not in name}
    matrices = [p for name, p in encoders.named_parameters() if name in inner]
    # "the word before" is told by this bias alone, and it has to grow from 0.07 to some 3 before a colour finds its noun: at the
    # others' rate that takes longer than the whole training
    places = [p for name, p in encoders.named_parameters() if "relative_attention_bias" in name]
    others = [p for name, p in encoders.named_parameters() if name not in inner and "relative_attention_bias" not in name]
    optimizer = Muon(matrices, [([*others, *readout.parameters(), *pooled_heads.parameters()], 2e-3), (places, 0.05)], matrix_rate=0.005)
    rng = random.Random(seed + 1)
    begin = time.monotonic()
    for step in range(1, steps + 1):
        samples = [sample_caption(rng) for _ in range(64)]
        texts = [text for text, _ in samples]
        labels = torch.tensor([answers(scene) for _, scene in samples])
        t5_ids = t5_tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
        clip_ids = clip_tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids
        # Flux passes no attention mask to either encoder
        with fast_products():
            embeddings, pooled = t5(t5_ids)[0], clip(clip_ids).pooler_output
        loss = answer_loss(readout(embeddings.float()), labels)
        total = loss + answer_loss([head(pooled.float()) for head in pooled_heads], labels)
        total.backward()
        optimizer.step(min(1.0, step / 50) * max(0.01, min(1.0, (1 - step / steps) / 0.6)))
        if step % 100 == 0:
            logger.info("step %d of %d, %.0f s, t5 loss %.3f, clip loss %.3f", step, steps, time.monotonic() - begin, loss.item(), total.item() - loss.item())
    logger.info("colours named right in held-out prompts: %s", colours_named(t5, readout, t5_tokenizer))
    clip.save_pretrained(out / "text_encoder")
    t5.save_pretrained(out / "text_encoder_2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.seed)


if __name__ == "__main__":
    main()
