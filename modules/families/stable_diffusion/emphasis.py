"""Weights in a prompt, as Stable Diffusion WebUI writes them, which SDXL and SD 1.5 were given there for years.

``(word)`` is 1.1 times as strong, ``[word]`` 1.1 times weaker, ``(word:1.3)`` has that weight; brackets may lie in each
other. ``\\(`` is a bracket as a character. ``BREAK`` begins a new chunk. Libraries for diffusers (compel) write weights
in another way and understand none of these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

STRONGER = 1.1
MOST_WEIGHT = 10.0
"""Weights beyond it, in either direction, are taken for it: larger ones only give noise."""

_TOKEN = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\()\[\]:]+|[:\\]")
_BREAK = re.compile(r"\bBREAK\b")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")


@dataclass(frozen=True)
class Segment:
    """A part of a prompt with one weight. ``breaks``: a new chunk begins before it."""

    text: str
    weight: float = 1.0
    breaks: bool = False


def segments(prompt: str) -> list[Segment]:
    """The parts of a prompt in order. A bracket that is not closed counts up to the end."""
    tokens = [match[0] for match in _TOKEN.finditer(prompt)]
    factors, closing = _brackets(tokens)
    found: list[Segment] = []
    opened: dict[int, float] = {}
    text = ""
    for index, token in enumerate([*tokens, ""]):
        if index in factors or index in closing or not token:
            weight = max(-MOST_WEIGHT, min(MOST_WEIGHT, math.prod(opened.values())))
            parts = enumerate(_BREAK.split(text))
            found += [Segment(part, weight, breaks=number > 0) for number, part in parts if part or number]
            text = ""
        if index in factors:
            opened[index] = factors[index]
        elif index in closing:
            del opened[closing[index]]
        else:
            text += token[1:] if len(token) == 2 and token[0] == "\\" else token
    return _joined(found)


def edits(prompt: str) -> Sequence[str]:
    """What a WebUI would change during the steps, ``[from:to:when]`` and ``[one|other]``. Here it is read as a weaker
    part."""
    return [match[0] for match in _BRACKETS.finditer(prompt) if ":" in match[0] or "|" in match[0]]


def _brackets(tokens: Sequence[str]) -> tuple[dict[int, float], dict[int, int]]:
    """What every opening bracket multiplies weights by, by its index; and the index of the opening bracket of every
    closing one."""
    factors: dict[int, float] = {}
    closing: dict[int, int] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for index, token in enumerate(tokens):
        if token in opened:
            opened[token].append(index)
            factors[index] = STRONGER if token == "(" else 1 / STRONGER
        elif token == "]" or token[-1] == ")" and token[0] != "\\":
            own = opened["[" if token == "]" else "("]
            if own:
                closing[index] = start = own.pop()
                if token[0] == ":":
                    factors[start] = float(token[1:-1])
    return factors, closing


def _joined(parts: Sequence[Segment]) -> list[Segment]:
    """Neighbours of one weight as one, as the tokenizer should see them."""
    joined: list[Segment] = []
    for part in parts:
        if joined and joined[-1].weight == part.weight and not part.breaks:
            before = joined.pop()
            part = Segment(before.text + part.text, before.weight, before.breaks)
        joined.append(part)
    return joined or [Segment("")]
