"""A tokenizer must fit the text encoder that reads its words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.refusals import refusal
from transformers import CLIPTokenizer

from backend.checkpoints.config import Config, read_config
from backend.core.settings import ROOT
from modules.families.prompt_tokenizer import load_prompt_tokenizer

FLUX = ROOT / "weights" / "embedded" / "flux"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FLUX / "tokenizer", tmp_path / "tokenizer"))


@pytest.fixture
def encoder() -> Config:
    return read_config(FLUX / "text_encoder" / "config.json")


def test_the_embedded_one_fits(folder: Path, encoder: Config) -> None:
    assert load_prompt_tokenizer(CLIPTokenizer, folder, encoder).model_max_length == 40


@pytest.mark.parametrize("length", [41, 10**6, 10**30, 0, -1, 2.5, "40", None])
def test_one_that_writes_more_than_the_encoder_reads_is_refused(folder: Path, encoder: Config, length: object) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": length}))
    assert refusal(lambda: load_prompt_tokenizer(CLIPTokenizer, folder, encoder)).startswith("tokenizer/tokenizer")


def test_one_with_more_words_than_the_encoder_knows_is_refused(folder: Path, encoder: Config) -> None:
    encoder["vocab_size"] = 100
    text = refusal(lambda: load_prompt_tokenizer(CLIPTokenizer, folder, encoder))
    assert text.startswith("tokenizer/tokenizer.json has ") and "the text encoder knows 100" in text


def test_one_that_cannot_fill_up_is_refused(folder: Path, encoder: Config) -> None:
    file = folder / "tokenizer_config.json"
    given = {key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"}
    file.write_text(json.dumps({**given, "pad_token": None}))
    assert refusal(lambda: load_prompt_tokenizer(CLIPTokenizer, folder, encoder)).startswith("tokenizer/tokenizer")
