"""The words that the text encoders know: tokenizers trained on captions, and old ones taught new words.

Whole words are one token each, so that a caption is short; single letters spell the words that no caption has.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTokenizer, T5TokenizerFast

from training.data.subjects import SUBJECTS, Subject, caption, in_other_words
from training.data.wordings import plain

MAX_TOKENS = 40
"""Length to which T5 captions are padded. Flux attends to padding too, so it must be the same at inference."""
SHARES = {"portraits": 48, "figures": 28, "hands": 8, "things": 16}
"""How many captions of a hundred are of which subject."""
CORPUS = 20_000
RARE = -13.0
"""Log-probability of a word that is added: every spelling by letters is far less likely."""


def sample_subject(rng: random.Random, subject: str | None = None) -> Subject:
    sample, sizes = SUBJECTS[subject or rng.choices(list(SHARES), list(SHARES.values()))[0]]
    return sample(rng, rng.choice(sizes))


def sample_caption(rng: random.Random, subject: str | None = None) -> tuple[str, Subject]:
    """A caption in the usual form, and what it is of."""
    shown = sample_subject(rng, subject)
    return caption(shown, rng), shown


def sample_reworded(rng: random.Random) -> tuple[str, str, Subject]:
    """A caption in any wording and the usual caption that says the same, both marked, and what they are of."""
    while True:
        shown = sample_subject(rng)
        words = in_other_words(shown, rng)
        if words:
            return (*words, shown)


def count_words(seed: int) -> Counter[str]:
    """The words of captions in the usual form and, a third of them, in any other."""
    rng = random.Random(seed)
    usual = (sample_caption(rng)[0] for _ in range(CORPUS))
    others = (plain(sample_reworded(rng)[0]) for _ in range(CORPUS // 2))
    return Counter(piece for text in (*usual, *others) for piece in re.findall(r"[a-z]+|[^a-z\s]", text.lower()))


def spellings(word: str) -> tuple[str, ...]:
    """A word as T5's tokenizer meets it: at a beginning, with a capital, in capitals, and inside of another."""
    if not word.isalpha():
        return (word,)
    return tuple(dict.fromkeys((f"▁{word}", f"▁{word.capitalize()}", word, f"▁{word.upper()}", word.upper())))


def train_tokenizers(seed: int) -> tuple[CLIPTokenizer, T5TokenizerFast]:
    counts = count_words(seed)
    letters = sorted(set(string.printable) - set(string.whitespace))
    pieces = {form: math.log(count / 1e6) for word, count in counts.items() for form in spellings(word)}
    pieces |= {letter: -20.0 for letter in ["▁", *letters] if letter not in pieces}
    t5 = T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces.items()], extra_ids=0, model_max_length=MAX_TOKENS
    )

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.WhitespaceSplit()])
    bpe.train_from_iterator(
        counts.elements(), trainers.BpeTrainer(vocab_size=1100, end_of_word_suffix="</w>", initial_alphabet=letters)
    )
    state = json.loads(bpe.to_str())["model"]
    vocabulary = list(state["vocab"])
    for letter in letters:
        vocabulary += [piece for piece in (letter, f"{letter}</w>") if piece not in state["vocab"]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        merges=[tuple(m) for m in state["merges"]],
        model_max_length=MAX_TOKENS,
    )
    return clip, t5


def widen_tokenizers(models_folder: Path, out: Path, seed: int) -> list[str]:
    """Copies both tokenizers and adds the captions' words that they have to spell; the ids of all others stay.
    Returns the words."""
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(models_folder / name, out / name, dirs_exist_ok=True)
    file = out / "tokenizer_2" / "tokenizer.json"
    state = json.loads(file.read_text())
    known = {piece for piece, _ in state["model"]["vocab"]}
    counted = sorted(count_words(seed))
    words = [word for word in counted if word.isalpha() and f"▁{word}" not in known]
    state["model"]["vocab"] += [
        [form, RARE]
        for form in dict.fromkeys(form for word in counted for form in spellings(word))
        if form not in known
    ]
    file.write_text(json.dumps(state, ensure_ascii=False))

    file, tokenizer = (
        out / "tokenizer" / "tokenizer.json",
        CLIPTokenizer.from_pretrained(models_folder / "tokenizer", trust_remote_code=False),
    )
    state = json.loads(file.read_text())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    following = 1 + max([*vocabulary.values(), *(token["id"] for token in state["added_tokens"])])
    for word in words:
        left, *others = tokenizer.tokenize(word)
        for right in others:
            if left + right not in vocabulary:
                merges.append([left, right])
                vocabulary[left + right] = following
                following += 1
            left += right
    file.write_text(json.dumps(state, ensure_ascii=False))
    return words


def widen_embedding(old: nn.Embedding, count: int) -> nn.Embedding:
    """The embedding with ``count`` rows; new ones are random with the spread of the old ones."""
    new = nn.Embedding(count, old.embedding_dim)
    with torch.no_grad():
        new.weight.normal_(0.0, float(old.weight.std()))
        new.weight[: old.num_embeddings] = old.weight
    return new


def copy_small_letters(embedding: nn.Embedding, tokenizer: T5TokenizerFast, pieces: Iterable[str]) -> None:
    """Gives tokens with capitals the embeddings of the same words in small letters."""
    ids = tokenizer.get_vocab()
    with torch.no_grad():
        for piece in pieces:
            if piece.lower() in ids:
                embedding.weight[ids[piece]] = embedding.weight[ids[piece.lower()]]


def in_capitals(tokenizer: T5TokenizerFast) -> list[str]:
    """The words that the vocabulary has in capitals; usual captions have none of them."""
    return [piece for piece in tokenizer.get_vocab() if piece.isupper() and len(piece.strip("▁")) > 1]


def same_ids(old: CLIPTokenizer | T5TokenizerFast, new: CLIPTokenizer | T5TokenizerFast, texts: Iterable[str]) -> bool:
    return all(old(text).input_ids == new(text).input_ids for text in texts)
