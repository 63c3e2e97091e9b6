"""A chat template writes what transformers writes with it, and can do no more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.refusals import refusal

from backend.checkpoints.loader import load_tokenizer
from backend.core.settings import ROOT
from backend.llm import chat_template
from backend.llm.chat_template import is_plain, render_chat

FOLDER = ROOT / "weights" / "embedded" / "prompt_upsampler"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'A "Fox" é'}]

LLAMA = """
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{%- endif %}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
NAMESPACE = (
    "{% set seen = namespace(count=0) %}{% for m in messages %}{% set seen.count = seen.count + 1 %}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}{{ seen.count }}{{ dict(a=1).a }}"
    "{% generation %}x{% endgeneration %}{{ strftime_now('%Y') }}{% if not tools %}none{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return load_tokenizer(AutoTokenizer, FOLDER)


@pytest.fixture
def templated(tokenizer: Any) -> Any:
    own = tokenizer.chat_template
    yield lambda template: setattr(tokenizer, "chat_template", template) or tokenizer
    tokenizer.chat_template = own


@pytest.mark.parametrize("template", [LLAMA, NAMESPACE, (FOLDER / "chat_template.jinja").read_text()])
def test_it_writes_what_transformers_writes(templated: Any, template: str) -> None:
    tokenizer = templated(template)
    theirs = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert render_chat(tokenizer, [TURNS], "model") == theirs != ""


def test_the_first_conversation_that_it_takes_is_written(templated: Any) -> None:
    tokenizer = templated(
        "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0]['content'] }}"
    )
    assert render_chat(tokenizer, [TURNS, TURNS[1:]], "model") == 'A "Fox" é'


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        ((FOLDER / "chat_template.jinja").read_text(), True),
        ("{{ messages[-1]['content'] | trim }}", True),
        ("{% for m in messages %}{{ m }}{% endfor %}", False),
        ("{{ 'x' * 9 }}", False),
        ("{{ 'x' | center(9) }}", False),
        ("{{ messages.copy() }}", False),
        ("{% set a = 'x' %}{{ a }}", False),
        ("{{ a" + " ~ a" * 5000 + " }}", False),
        ("{{ unclosed", False),
    ],
)
def test_only_one_that_puts_texts_together_is_plain(template: str, plain: bool) -> None:
    assert is_plain(template) is plain


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
        ("{{ 9 ** (9 ** 9) }}", "does not end within"),
        ("{{ 'x' * 10 ** 10 }}", "MemoryError"),
        ("{{ 'x' | center(10 ** 10) }}", "MemoryError"),
        ("{{ '%9999999999d' % 1 }}", "MemoryError"),
        ("{{ 'x' * 300000 }}", "writes more than"),
        ("{{ unclosed", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('no') }}", "TemplateError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('touch planted') }}", "SecurityError"),
        ("{{ namespace(_a=1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("x" * 200_001, "is longer than"),
    ],
)
def test_one_that_does_not_end_grows_or_escapes_is_refused_in_a_line(
    templated: Any, template: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat_template, "SECONDS", 0.5 if problem == "does not end within" else 2.0)
    text = refusal(lambda: render_chat(templated(template), [TURNS], "model"))
    assert text.startswith("model: its chat template ") and problem in text
    assert list(tmp_path.iterdir()) == []
