"""Chat templates: a conversation as the text that a language model was trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from backend.core.errors import WeightsError
from backend.llm import template_process

SECONDS = 4.0
"""How long a template may take. With the start of its process one takes a tenth of a second."""
MAX_CHARACTERS = 200_000
"""Of a template, and of what it writes."""

PLAIN = (nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Getitem, nodes.Neg, nodes.Filter)
FILTERS = ("lower", "trim", "upper")

Conversation = Sequence[Mapping[str, str]]


def is_plain(template: str) -> bool:
    """Whether a template only puts texts one after the other: without loops, calls, variables and arithmetic."""
    try:
        parts = list(Environment().parse(template).find_all(nodes.Node))
    except (TemplateError, RecursionError):
        return False
    return all(type(part) in PLAIN and (not isinstance(part, nodes.Filter) or part.name in FILTERS) for part in parts)


def render_chat(tokenizer: Any, conversations: Sequence[Conversation], label: str, **switches: bool) -> str:
    """The first of the conversations that the tokenizer's template takes, up to where the model answers; ``switches``
    are variables of the template.

    The template is rendered in a process of its own, with a limit on time and memory; one that can take neither is
    rendered here, which is a tenth of a second faster. Raises :class:`WeightsError`,
    which begins with ``label``, for one that takes none of them, does not end, or writes too much.
    """
    template = tokenizer.get_chat_template()
    variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "add_generation_prompt": True}
    variables |= switches
    given = {"template": template, "conversations": conversations, "variables": variables}
    if len(template) > MAX_CHARACTERS:
        raise WeightsError(f"{label}: its chat template is longer than {MAX_CHARACTERS} characters")
    if is_plain(template):
        return template_process.render(template, {**variables, "messages": conversations[0]})
    try:
        finished = subprocess.run(
            [sys.executable, "-I", template_process.__file__],
            input=json.dumps(given).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{label}: its chat template does not end within {SECONDS:.0f} seconds") from None
    if finished.returncode == 0:
        answer = json.loads(finished.stdout)
    else:  # it is out of memory, say
        answer = {"problem": finished.stderr.decode(errors="replace").strip().rpartition("\n")[2].partition(":")[0]}
    if "text" not in answer:
        raise WeightsError(f"{label}: its chat template cannot be used ({answer.get('problem')})")
    if len(answer["text"]) > MAX_CHARACTERS:
        raise WeightsError(f"{label}: its chat template writes more than {MAX_CHARACTERS} characters")
    return str(answer["text"])
