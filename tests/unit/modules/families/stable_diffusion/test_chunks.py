"""A prompt as chunks of tokens, as Stable Diffusion WebUI divides it."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from backend.core.settings import ROOT
from modules.families.stable_diffusion.chunks import BACKTRACK, MARKS, MAX_CHUNKS, divided
from modules.families.stable_diffusion.service import weighted

TOKENIZER = CLIPTokenizer.from_pretrained(
    ROOT / "weights/embedded/flux/tokenizer", local_files_only=True, trust_remote_code=False
)
LENGTH = TOKENIZER.model_max_length
SIZE = LENGTH - MARKS


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False, verbose=False).input_ids)


HAT = len(ids("hat"))


@pytest.mark.parametrize("prompt", ["", "a woman with red hair", " ".join(["hat"] * (SIZE // HAT))])
def test_a_plain_prompt_that_fits_has_the_tokens_that_diffusers_gives_it(prompt: str) -> None:
    expected = TOKENIZER(
        prompt, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    (only,) = divided(TOKENIZER, prompt).ids(TOKENIZER)
    assert torch.equal(only, expected)
    assert divided(TOKENIZER, prompt).weights(LENGTH) == [None]


def test_a_longer_prompt_goes_on_in_further_chunks_and_no_token_is_lost() -> None:
    prompt = " ".join(["hat"] * 3 * SIZE)
    chunks = divided(TOKENIZER, prompt).chunks
    assert [token for chunk in chunks for token in chunk.ids] == ids(prompt)
    assert all(len(chunk.ids) == SIZE for chunk in chunks[:-1])


def test_a_chunk_ends_after_a_comma_that_is_near_its_end() -> None:
    before = SIZE // HAT - 3
    prompt = " ".join(["hat"] * before) + ", " + " ".join(["hat"] * 8)
    first, second = divided(TOKENIZER, prompt).chunks
    assert first.ids == ids(" ".join(["hat"] * before) + ",")
    assert second.ids == ids(" ".join(["hat"] * 8))
    far = ", " + " ".join(["hat"] * SIZE)
    assert len(ids(far)) - 1 > BACKTRACK
    assert len(divided(TOKENIZER, far).chunks[0].ids) == SIZE


def test_a_break_ends_a_chunk() -> None:
    first, second = divided(TOKENIZER, "red hair BREAK yellow hat").chunks
    assert (first.ids, second.ids) == (ids("red hair"), ids("yellow hat"))


def test_weights_stand_beside_their_tokens() -> None:
    chunks = divided(TOKENIZER, "a (red:1.3) hat")
    (weights,) = chunks.weights(LENGTH)
    assert weights is not None and weights.shape == (1, LENGTH, 1)
    before, heavy = len(ids("a")), len(ids("red"))
    expected = [1.0] * (1 + before) + [1.3] * heavy
    assert weights[0, : len(expected), 0].tolist() == pytest.approx(expected)
    assert set(weights[0, len(expected) :, 0].tolist()) == {1.0}


@pytest.mark.parametrize("prompt", [" ".join(["hat"] * 4_000), "BREAK " * 3_000 + "hat", "(a)" * 6_000, "a" * 20_000])
def test_at_most_eight_chunks_are_read_and_the_rest_is_named(prompt: str) -> None:
    found = divided(TOKENIZER, prompt)
    assert len(found.chunks) == MAX_CHUNKS
    assert found.unread and found.unread.replace(" ", "") in prompt.translate(dict.fromkeys(map(ord, " ()")))


def test_adapters_are_no_words() -> None:
    assert divided(TOKENIZER, "a hat<lora:x:1>").chunks[0].ids == ids("a hat")


def test_weighted_embeddings_have_the_mean_of_plain_ones() -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, projection_dim=32,
    )  # fmt: skip
    encoder = CLIPTextModelWithProjection(config).eval()
    chunks = divided(TOKENIZER, "a (red:1.3) [hat]")
    with torch.inference_mode():
        plain = encoder(chunks.ids(TOKENIZER)[0], output_hidden_states=True).hidden_states[-2] + 0.5
    weights = chunks.weights(LENGTH)[0]
    assert weights is not None
    heavy = weighted(plain, weights)
    assert heavy.mean() == pytest.approx(plain.mean().item(), rel=1e-5)
    ratio = heavy / plain / weights
    assert torch.allclose(ratio, ratio[0, 0, 0].expand_as(ratio), rtol=1e-4)
    assert weighted(plain, None) is plain
    assert weighted(plain, torch.zeros_like(weights)).isfinite().all()
