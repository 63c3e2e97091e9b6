"""Prompts that a language model rewrites before anything is drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_specs import FLUX_DEV, embedded_spec

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError, WeightsError
from backend.core.settings import ROOT, Settings
from backend.core.timeline import Timeline
from backend.llm.language_model import load_causal_network
from backend.memory_management import DeviceMemory, Workload, plan_memory
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.planning.companions import with_prompt_upsampler
from modules.app.service import Service, start
from modules.extension_optimizer import select
from modules.output.image_writer import read_parameters
from modules.pipeline.base import no_progress
from modules.prompting.prompt_upsampler import (
    MODEL,
    PromptUpsampler,
    cleaned,
    find_prompt_upsampler,
    upsampled,
    whole_phrases,
)
from modules.request.image_request import ImageRequest
from training.evaluation.terse import terse_prompts

EMBEDDED = ROOT / "weights" / "embedded" / "prompt_upsampler"
QUICK: dict[str, Any] = {
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "adetailer": False,
    "scale": 1.0,
    "output_format": "png",
    "seed": 3,
}
WANTED = ImageRequest(prompt="red hair woman", width=128, height=128, seed=0, prompt_upsampling=True)


def predict(service: Service, **inputs: Any) -> tuple[str, dict[str, Any], dict[str, float]]:
    """The text and the record in the file, and the metrics."""
    metrics: dict[str, float] = {}
    (file,) = service.predict({**QUICK, **inputs}, metrics.__setitem__, progress=no_progress)
    return *read_parameters(file), metrics


def test_the_rewritten_prompt_is_drawn_and_written_into_the_file(service: Service) -> None:
    text, record, metrics = predict(service, prompt="red hair woman", prompt_upsampling=True)
    request = record["request"]
    assert request["original_prompt"] == "red hair woman" and request["prompt_note"] == "rewritten by prompt_upsampler"
    assert "red hair" in request["prompt"] and len(request["prompt"]) > 40
    assert text.startswith(request["prompt"])
    assert metrics["prompt_upsampling.seconds"] > 0


def test_off_by_default(service: Service) -> None:
    _, record, metrics = predict(service, prompt="red hair woman")
    assert (record["request"]["prompt"], record["request"]["original_prompt"], record["request"]["prompt_note"]) == (
        "red hair woman",
        "",
        "",
    )
    assert not any(name.startswith("prompt_upsampling") for name in metrics)


def test_the_seed_decides_the_words_and_follows_that_of_the_picture(service: Service) -> None:
    def words(**inputs: Any) -> str:
        return str(predict(service, prompt="woman", prompt_upsampling=True, **inputs)[1]["request"]["prompt"])

    assert words(prompt_upsampling_seed=1) == words(prompt_upsampling_seed=1, seed=9) != words(prompt_upsampling_seed=2)
    assert words(seed=1) == words(prompt_upsampling_seed=1)


def test_what_was_asked_for_stays(service: Service) -> None:
    """Of held-out combinations, so the model has never seen the answer."""
    assert service.upsampler is not None
    kept = [
        f"{colour} {name}" in service.upsampler.rewrite(prompt, seed)
        for seed, (prompt, asked) in enumerate(terse_prompts())
        for name, colour in asked.items()
    ]
    assert sum(kept) / len(kept) > 0.95


def test_without_a_language_model_the_input_is_refused_with_the_name_of_the_setting() -> None:
    schema = InputSchema()
    with pytest.raises(
        InputError,
        match=(
            "^prompt_upsampling: needs a language model; name its folder in 'prompt_upsampler' in "
            "config_optimized.json$"
        ),
    ):
        select(Settings()).without({MODEL}).turn_off(
            schema.validate({"prompt": "a fox", "prompt_upsampling": True}), schema.defaults
        )


def test_a_failure_leaves_the_users_words_and_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(EMBEDDED, folder)
    (folder / "model.safetensors").write_bytes((EMBEDDED / "model.safetensors").read_bytes()[:5000])
    models = ModelCache(torch.device("cpu"))
    models.register(MODEL, partial(load_causal_network, folder, torch.float32))
    timeline = Timeline()
    request = upsampled(WANTED, PromptUpsampler(models, folder, 40, OomFallback()), timeline)
    assert (request.prompt, request.original_prompt) == ("red hair woman", "red hair woman")
    assert request.prompt_note.startswith("not rewritten: damaged/config.json is damaged")
    assert "the prompt stays as it is" in caplog.text and "damaged" in caplog.text


def test_a_prompt_that_is_longer_than_the_model_reads_stays_and_is_told() -> None:
    models = ModelCache(torch.device("cpu"))
    models.register(MODEL, partial(load_causal_network, EMBEDDED, torch.float32))
    prompt = "red hair woman " * 1_000
    request = upsampled(
        replace(WANTED, prompt=prompt), PromptUpsampler(models, EMBEDDED, 40, OomFallback()), Timeline()
    )
    assert (request.prompt, request.original_prompt) == (prompt, prompt)
    assert request.notices == ("prompt_upsampling: not rewritten, the prompt is longer than prompt_upsampler reads",)


@pytest.mark.parametrize(
    "answer",
    [
        "A red fox in the snow, soft light.",
        '"A red fox in the snow, soft light."',
        "**A red fox in the snow, soft light.**",
        "Sure! Here is a detailed description:\n\nA red fox in the snow, soft light.",
        "Prompt: A red fox in the snow, soft light.",
        "<think>The user wants a fox.\nI should...</think>\nA red fox in the snow, soft light.",
        "<|im_start|>assistant\nA red fox in the snow, soft light.<|im_end|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\nA red fox in the snow, soft light.<|eot_id|>",
        "[INST] [/INST] A red fox in the snow, soft light.</s>",
        "<start_of_turn>model\nA red fox in the snow, soft light.<end_of_turn>",
        "A red fox in the snow,\nsoft light.\nUser: another one\nAssistant: A dog",
        "```\nA red fox in the snow, soft light.\n```",
        "Here's an improved version:\nDetailed description: “A red fox in the snow, soft light.”",
    ],
)
def test_an_answer_is_cleaned_of_what_chat_models_put_around_it(answer: str) -> None:
    assert cleaned(answer) == "A red fox in the snow, soft light."


@pytest.mark.parametrize("answer", ["", "  \n", "<think>I never stop thinking about", "<|im_end|>", '""'])
def test_an_answer_may_be_empty(answer: str) -> None:
    assert cleaned(answer).strip('"') == ""


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two and", "One."),
        ("a fox, some snow, and a ve", "a fox, some snow"),
        ("a single phra", "a single phra"),
        ("a, b. c, d", "a, b."),
    ],
)
def test_a_text_that_was_cut_off_ends_with_a_whole_phrase(text: str, whole: str) -> None:
    assert whole_phrases(text) == whole


def test_an_answer_is_no_longer_than_the_text_encoder_reads(service: Service) -> None:
    upsampler = service.upsampler
    assert upsampler is not None and upsampler.limit == service.profile.tokens == 40
    assert len(upsampler.tokenizer(upsampler.rewrite("three people " * 30, 0)).input_ids) <= 41


def test_a_model_that_knows_no_system_gets_the_instruction_with_the_words(tmp_path: Path) -> None:
    upsampler = PromptUpsampler(ModelCache(torch.device("cpu")), EMBEDDED, 40, OomFallback())
    upsampler.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ "
        "m['content'] }}{% endfor %}"
    )
    asked = upsampler.asked("a fox")
    assert asked.startswith("Rewrite the user's words") and asked.endswith("\n\na fox")
    upsampler.tokenizer.chat_template = None
    assert upsampler.asked("a fox").endswith("\n\nWords: a fox\nDescription:")


def test_the_setting_names_a_folder(tmp_path: Path) -> None:
    assert find_prompt_upsampler(Settings(), embedded=True) == EMBEDDED
    assert find_prompt_upsampler(Settings(), embedded=False) is None
    assert find_prompt_upsampler(Settings(prompt_upsampler=""), embedded=True) is None
    assert find_prompt_upsampler(Settings(prompt_upsampler="embedded"), embedded=False) == EMBEDDED
    assert find_prompt_upsampler(Settings(prompt_upsampler=str(EMBEDDED)), embedded=False) == EMBEDDED
    with pytest.raises(WeightsError, match="^prompt_upsampler: 'nowhere' is no folder with a config.json"):
        find_prompt_upsampler(Settings(prompt_upsampler="nowhere"), embedded=True)


def eight_billion(folder: Path) -> Path:
    """The headers of a language model of 16 GB; the plan reads no more."""
    config = {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps(
        {"model.weight": {"dtype": "BF16", "shape": [8_030_000, 1000], "data_offsets": [0, 16_060_000_000]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


@pytest.mark.parametrize(("gigabytes", "kind"), [(80, "resident"), (18, "model offload")])
def test_the_memory_plan_knows_it_as_one_more_component(tmp_path: Path, gigabytes: int, kind: str) -> None:
    models = with_prompt_upsampler(FLUX_DEV, eight_billion(tmp_path), "bf16")
    plan = plan_memory(
        DeviceMemory("cuda", gigabytes * 10**9, host_bytes=128 * 10**9),
        models,
        Workload(1024, 1024, detail_crop=1024, scale=2),
    )
    assert plan.placements[MODEL].kind == kind and plan.placements[MODEL].dtype == "bf16"
    assert plan.predicted_peak_bytes <= gigabytes * 10**9


def test_its_size_is_that_of_its_files() -> None:
    models = with_prompt_upsampler(embedded_spec(), EMBEDDED, "fp32")
    network = load_causal_network(EMBEDDED, torch.float32)
    assert models.components[MODEL].size() == sum(p.numel() * p.element_size() for p in network.parameters())


def test_on_a_small_emulated_card_it_makes_room_for_flux_and_writes_the_same(service: Service) -> None:
    small = start(replace(Settings(), model="embedded", dtype="float32", emulate_vram="54MB", warm_up=False))
    assert small.runtime.plan.placements[MODEL].kind == "model offload"
    inputs = {"prompt": "red hair woman", "prompt_upsampling": True}
    assert predict(small, **inputs)[1]["request"]["prompt"] == predict(service, **inputs)[1]["request"]["prompt"]
