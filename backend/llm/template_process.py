"""The process in which a chat template is rendered; :mod:`backend.llm.chat_template` starts it.

A template comes with a model and is a program: it may loop for ever, or ask for a text of ten gigabytes. Here it has a
sandbox, so that it reaches nothing but its values, and little memory. Reads one JSON object from standard input and
writes one to standard output. It imports nothing of this package, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2.ext
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 2**29


class Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the model has written, for training. Here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class Namespace(jinja2.utils.Namespace):
    """Refuses names by which a template could leave the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError("a name begins with an underscore")


def refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def to_json(value: Any, **options: Any) -> str:
    """jinja2's own would escape what HTML does."""
    known = {name: options[name] for name in ("indent", "separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=bool(options.get("ensure_ascii")), **known)


def render(template: str, variables: dict[str, Any]) -> str:
    """As transformers' ``apply_chat_template`` renders."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": Namespace,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    return environment.from_string(template).render(**variables)


def main() -> None:
    """Renders the first of the given conversations that the template takes."""
    given = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answer = {}
    for messages in given["conversations"]:
        try:
            answer = {"text": render(given["template"], {**given["variables"], "messages": messages})}
            break
        except TemplateError as error:
            answer = {"problem": type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
