"""What is read of a prompt, what is beyond, and that long texts are cut before they are tokenized."""

from __future__ import annotations

import time

import pytest
from transformers import CLIPTokenizer, T5TokenizerFast

from backend.core.settings import ROOT
from modules.diffusion.prompt_text import (
    length_notes,
    network_notes,
    networks,
    plain_words_notes,
    split_at_limit,
    unknown_words_notes,
    without_networks,
)

FLUX = ROOT / "weights/embedded/flux"
TOKENIZERS = {
    "clip": CLIPTokenizer.from_pretrained(FLUX / "tokenizer", local_files_only=True, trust_remote_code=False),
    "t5": T5TokenizerFast.from_pretrained(FLUX / "tokenizer_2", local_files_only=True, trust_remote_code=False),
}
LENGTH = 40
WORDS = " ".join(["a woman with red hair and a yellow hat in front of a green house"] * 30)
HOSTILE = {
    "one word": "a" * 20_000,
    "combining marks": "e" + "\u0301" * 20_000,
    "emoji": "\U0001f600" * 20_000,
    "zero bytes": "\0" * 20_000,
    "control": "\x01\x1b\x7f" * 6_000,
    "right to left": "\u202e\u200f" * 10_000,
    "spaces": " " * 20_000,
    "empty": "",
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> CLIPTokenizer | T5TokenizerFast:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize(
    "text", [WORDS, WORDS[:90], "a hat", *HOSTILE.values()], ids=["long", "short", "two", *HOSTILE]
)
def test_the_part_has_the_tokens_of_the_whole_text(tokenizer: CLIPTokenizer | T5TokenizerFast, text: str) -> None:
    part, _ = split_at_limit(tokenizer, text, LENGTH)
    cut = {"truncation": True, "max_length": LENGTH, "verbose": False}
    assert tokenizer(part, **cut).input_ids == tokenizer(text, **cut).input_ids


def test_the_words_beyond_are_named_whole(tokenizer: CLIPTokenizer | T5TokenizerFast) -> None:
    text = " ".join(f"number{index}" for index in range(500))
    unread = split_at_limit(tokenizer, text, LENGTH)[1]
    assert text.endswith(unread) and text[-len(unread) - 1] == " " and unread.startswith("number")
    read = text.removesuffix(unread)
    assert len(tokenizer(read + unread.split()[0], verbose=False).input_ids) > LENGTH
    assert len(tokenizer(read, verbose=False).input_ids) <= LENGTH


def test_nothing_is_beyond_where_all_is_read(tokenizer: CLIPTokenizer | T5TokenizerFast) -> None:
    assert split_at_limit(tokenizer, "a woman with red hair", LENGTH) == ("a woman with red hair", "")
    fits = 0
    for count in range(1, 60):
        text = " ".join(["hat"] * count)
        fits = max(fits, count if len(tokenizer(text, verbose=False).input_ids) <= LENGTH else 0)
        assert bool(split_at_limit(tokenizer, text, LENGTH)[1]) == (count > fits)


def test_of_a_text_of_a_hundred_megabytes_little_is_tokenized(tokenizer: CLIPTokenizer | T5TokenizerFast) -> None:
    text = WORDS * 60_000
    begin = time.perf_counter()
    part, unread = split_at_limit(tokenizer, text, LENGTH)
    assert len(part) < 2_000 and len(unread) > 10**8
    assert time.perf_counter() - begin < 5


def test_names_of_files_are_no_words_and_those_without_effect_are_told() -> None:
    prompt = "a fox <lora:watercolor:0.8>, red <LyCO:x>"
    assert without_networks(prompt) == "a fox , red "
    assert networks(prompt) == "<lora:watercolor:0.8> <LyCO:x>"
    assert network_notes("prompt", prompt) == []
    assert network_notes("ad_negative_prompt", prompt)[0].startswith("ad_negative_prompt: a LoRA in it does nothing")
    assert network_notes("prompt", "a <hypernet:x:1> b") == [
        "prompt: <hypernet:x:1> is left out, only LoRA is supported"
    ]
    assert network_notes("prompt", "a < b: c > d") == []
    assert without_networks("<lora:" * 4_000) == "<lora:" * 4_000


def test_markup_is_told_once_where_they_are_plain_words() -> None:
    assert plain_words_notes("prompt", "a (red:1.3) (hat:1.2)", "Flux") == [
        "prompt: Flux reads '(red:1.3)' as plain words, it knows no weights"
    ]
    for markup in ("BREAK", "((hat))", "[hat]", "[[hat]]", "[cat:dog:0.5]", "[a|b]", r"\(hat\)"):
        assert plain_words_notes("prompt", f"a {markup} b", "Flux"), markup
    assert plain_words_notes("prompt", "a clock at 10:30 (in the morning), breaking", "Flux") == []


def test_the_message_names_the_words_and_is_short() -> None:
    assert length_notes("prompt", "", 75) == []
    assert length_notes("prompt", "red hat", 75) == ["prompt: the model reads 75 tokens; 2 words are beyond: red hat"]
    assert len(length_notes("prompt", "word " * 4_000, 75)[0]) < 400


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("A Woman with red hair, smiling.", ""),
        ("two people waving: a man, a woman's hat", ""),
        ("a cat and a glass", "it does not know: glass"),
        ("two women with hats, men", "it does not know: women, hats, men (it knows: woman, hat, man)"),
        ("buses", "it does not know: buses"),
    ],
)
def test_words_that_the_demo_model_does_not_know_are_named(prompt: str, told: str) -> None:
    notes = unknown_words_notes("prompt", prompt, TOKENIZERS["clip"], "portraits")
    assert notes == ([f"prompt: the demo model knows portraits; {told}"] if told else [])
