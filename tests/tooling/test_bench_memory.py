"""The random models of ``bench/memory`` load with what else they take from the embedded ones."""

from __future__ import annotations

import json

import pytest

from backend.core.settings import ROOT
from bench.memory.partial_residency import SCALED

FLUX = ROOT / "weights" / "embedded" / "flux"


@pytest.mark.parametrize(("encoder", "tokenizer"), [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")])
def test_text_encoders_know_all_words_of_the_embedded_tokenizers(encoder: str, tokenizer: str) -> None:
    words = json.loads((FLUX / tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(words) <= SCALED[encoder]["vocab_size"]
