"""``examples/inference_cuda_optimized.py``: a language model on whatever this machine has."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.core.settings import ROOT
from backend.llm.language_model import TEMPERATURE, Budget, TransformersModel, open_with_transformers

EMBEDDED = ROOT / "weights" / "embedded" / "prompt_upsampler"
COMMAND = [sys.executable, "examples/inference_cuda_optimized.py"]
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """As a user does."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


Ran = tuple[int, str, str]
"""The exit status, standard output and standard error."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """:func:`run` in this process, which has imported torch and transformers."""

    def call(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", [COMMAND[-1], *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        try:
            runpy.run_path(COMMAND[-1], run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), *capsys.readouterr()
        raise AssertionError("the command ends with an exit status")

    return call


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and a token for every byte, which never ends by itself."""
    folder = tmp_path_factory.mktemp("llama")
    bytewise = Tokenizer(
        models.BPE({letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=None, **shape)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@on_cpu
def test_the_embedded_model_writes_with_speed_and_memory_told() -> None:
    result = run("-m", EMBEDDED, "-u", "0.90", "-p", "red hair woman\n", "-t", "40")
    assert result.returncode == 0, result.stderr
    assert "FlashAttention: not used: there is no CUDA device" in result.stdout
    assert "prompt_upsampler: loaded with transformers in" in result.stdout and "float32 cache" in result.stdout
    assert "red hair woman\na portrait of" in result.stdout
    assert float(re.findall(r"([\d.]+) tokens/s, after a warm-up", result.stdout)[0]) > 1
    assert re.search(r"CPU: [\d.]+ GiB held by this process of [\d.]+ GiB, [\d.]+% utilized\n$", result.stdout)


@on_cpu
def test_it_writes_as_many_tokens_as_asked_for(ran: Callable[..., Ran], random_llama: Path) -> None:
    status, output, _ = ran("-m", random_llama, "-t", "50", "--engine", "transformers")
    assert status == 0 and "\n50 tokens in " in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-u", "0"], "argument -u/--gpu_utilization: must be over 0 and at most 1, not 0"),
        (["-u", "1.5"], "argument -u/--gpu_utilization: must be over 0 and at most 1, not 1.5"),
        (["-u", "nan"], "argument -u/--gpu_utilization: must be over 0 and at most 1, not nan"),
        (["-t", "0"], "argument -t/--tokens: must be a whole number from 1, not 0"),
        (
            ["-m", "docs"],
            "'docs' is not a model: it has no config.json; give a folder with config.json, tokenizer and weights",
        ),
        (
            ["-m", "weights/embedded/flux/vae"],
            "'weights/embedded/flux/vae' is not a language model: its config.json has no vocab_size",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    ran: Callable[..., Ran], random_llama: Path, arguments: list[str], message: str
) -> None:
    status, _, errors = ran("-m", random_llama, *arguments)
    assert (status, errors) == (2, f"error: {message}\n")


@on_cpu
@pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
def test_the_exllama_engines_need_cuda(ran: Callable[..., Ran], random_llama: Path, engine: str) -> None:
    status, _, errors = ran("-m", random_llama, "--engine", engine)
    assert status == 2
    assert (
        errors
        == f"error: --engine {engine} needs a CUDA device, and there is none; use --engine transformers, which also runs on the CPU\n"
    )


@on_cpu
def test_a_model_that_is_too_large_is_told_with_three_remedies(ran: Callable[..., Ran], random_llama: Path) -> None:
    status, _, errors = ran("-m", random_llama, "-u", "0.0000001")
    assert status == 2 and errors.startswith("error: out of memory: the weights take ")
    assert all(
        remedy in errors
        for remedy in ("lower the utilization (-u 0.85)", "--max-seq-len", "quantized model (EXL2, GPTQ)")
    )


def test_the_help_names_every_option(ran: Callable[..., Ran]) -> None:
    _, text, _ = ran("--help")
    assert all(option in text for option in ("-m", "-u", "-p", "-t", "--engine", "--max-seq-len", "0.90", "200"))


def test_kept_keys_and_values_change_nothing(random_llama: Path) -> None:
    """Every token is the one that a forward over the whole text gives."""
    model = open_with_transformers(random_llama, Budget())
    assert isinstance(model, TransformersModel)
    written = model.complete("a man", 20, seed=5)
    ids, generator = model.tokenizer("a man", return_tensors="pt").input_ids, torch.Generator().manual_seed(5)
    begin = ids.shape[1]
    with torch.inference_mode():
        for _ in range(20):
            chances = torch.softmax(
                model.network(ids.to(model.network.device)).logits[0, -1].float().cpu() / TEMPERATURE, 0
            )
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)[None]], 1)
    assert written.text == model.tokenizer.decode(ids[0, begin:], skip_special_tokens=True)
    assert (written.tokens, written.ended) == (20, False)


def test_a_text_never_grows_over_the_longest_sequence(random_llama: Path) -> None:
    written = open_with_transformers(random_llama, Budget(max_seq_len=16)).complete(
        "a woman with red hair and a blue shirt " * 5, 50, seed=0
    )
    assert written.tokens == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_share_of_what_is_free_stays_free(random_llama: Path) -> None:
    free = torch.cuda.mem_get_info(0)[0]
    assert Budget(0.9).reserved_bytes()[0] == pytest.approx(0.1 * free, rel=0.05)
    result = run("-m", random_llama, "--engine", "transformers", "-t", "50")
    assert result.returncode == 0 and re.search(r"GPU 0: .* allocated, .* reserved of .* utilized", result.stdout)
