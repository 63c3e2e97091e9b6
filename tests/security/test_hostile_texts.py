"""Hostile texts in every text input: each works or is refused in one line, soon, and leaves no memory behind."""

from __future__ import annotations

import json
import random
import string
import time
from typing import Any

import pytest
from support.held_memory import held_bytes
from support.requests_data import INPUTS

from backend.core.errors import InputError
from bench.support.hostile_texts import TEXTS, UNITS
from modules.app.service import Service
from modules.output.image_writer import read_parameters
from modules.pipeline.base import no_progress

SMALL = {**INPUTS, "num_inference_steps": 1, "megapixels": "0.25", "scale": 1.0, "seed": 1, "output_format": "png"}


def predicted(service: Service, **changes: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    metrics: dict[str, Any] = {}
    (file,) = service.predict({**SMALL, **changes}, metrics.__setitem__, no_progress)
    return *read_parameters(file), metrics


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_is_a_prompt(service: Service, text: str) -> None:
    begin = time.process_time()
    parameters, record, _ = predicted(service, prompt=text, adetailer=True, ad_prompt=text)
    assert parameters and record["request"]["prompt"].encode()
    assert time.process_time() - begin < 30


@pytest.mark.parametrize("text", UNITS.values(), ids=UNITS)
def test_units_that_cannot_be_are_refused_in_one_line(service: Service, text: str) -> None:
    begin = time.process_time()
    with pytest.raises(InputError) as refused:
        service.checks.request({**SMALL, "prompt": "a man with a hat", "adetailer": True, "adetailer_args": text})
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500
    assert time.process_time() - begin < 5


def test_what_is_beyond_the_limit_is_told_in_the_log_the_file_and_the_metrics(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "a man with red hair, " * 12 + "a zeppelin (far away:1.2)"
    parameters, record, metrics = predicted(service, prompt=prompt)
    beyond = next(notice for notice in metrics["notices"] if "beyond" in notice)
    assert beyond.startswith("prompt: the model reads 40 tokens; ") and "zeppelin" in beyond
    assert record["request"]["notices"] == metrics["notices"]
    assert json.dumps("; ".join(metrics["notices"]), ensure_ascii=False) in parameters
    assert all(notice in caplog.text for notice in metrics["notices"])
    assert any("reads '(far away:1.2)' as plain words" in notice for notice in metrics["notices"])


def test_a_usual_prompt_has_no_notices(service: Service) -> None:
    parameters, record, metrics = predicted(service, prompt="a man with red hair", adetailer=True)
    assert "notices" not in metrics and record["request"]["notices"] == [] and "Notes" not in parameters


def test_two_hundred_long_prompts_leave_no_memory_behind(service: Service) -> None:
    """Of words that were never seen, which a tokenizer would keep, and too many for the cache of embeddings."""
    rng = random.Random(0)

    def run(count: int) -> None:
        for _ in range(count):
            word = "".join(rng.choices(string.ascii_letters, k=30))
            prompt = " ".join("".join(rng.sample(word, len(word))) for _ in range(600))
            service.pipeline.stages[0].notices(service.checks.request({**SMALL, "prompt": prompt}))

    run(40)
    before = held_bytes()
    run(200)
    assert held_bytes() - before < 20e6
