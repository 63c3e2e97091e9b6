"""Which LoRA a request uses, and how strongly: from inputs, and from tags such as ``<lora:name:0.8>`` in prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from backend.core.validation import STRICT, Text
from modules.lora.files.references import shown

MOST_SCALE = 3.0
"""Scales lie between this and its negative."""

_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:.*:)?civitai:\d+(?:@\d+)?")
"""A reference whose last number is no scale."""


@dataclass(frozen=True, config=STRICT)
class LoraUse:
    """One LoRA. ``reference`` is the name of a file or what else the user wrote; at scale 0 it does nothing.
    ``input_name`` is the input that it was given in, which errors name."""

    reference: Text
    scale: Annotated[float, Field(ge=-MOST_SCALE, le=MOST_SCALE)] = 1.0
    input_name: Text = "prompt"


def tagged(prompt: str, input_name: str = "prompt") -> tuple[LoraUse, ...]:
    """What the tags of a prompt ask for, in their order. The scale is what follows the last colon, 1 without one.

    Raises ``ValueError`` with what is wrong, in words that follow the name of an input.
    """
    return tuple(_use(match[0], match[1], input_name) for match in _TAG.finditer(prompt))


def written(reference: str, scale: float) -> str:
    """The tag of a LoRA."""
    return f"<lora:{reference}:{scale:g}>"


def changed_tags(prompt: str, change: Callable[[str], str]) -> str:
    """The prompt with every tag as ``change`` makes it; without spaces around those that are left out."""
    changed = _TAG.sub(lambda match: change(match[0]), prompt)
    return changed if changed == prompt else re.sub(r"  +", " ", changed).strip()


def in_region(prompt: str, whole: Sequence[LoraUse]) -> tuple[LoraUse, ...]:
    """What is used for a region of this prompt: its own, and of the whole picture's those that it does not name."""
    own = tagged(prompt, "ad_prompt")
    named = {use.reference for use in own}
    return (*(use for use in whole if use.reference not in named), *own)


def _use(tag: str, content: str, input_name: str) -> LoraUse:
    reference, colon, last = content.rpartition(":")
    if not colon or not _is_number(last) or _NUMBERED.fullmatch(content):
        reference, last = content, "1"
    rest = reference.rpartition(":")[2]
    two_scales = rest != reference and _is_number(rest) and not _NUMBERED.fullmatch(reference)
    if not reference.strip() or two_scales:
        raise ValueError(f"has {shown(tag)}; write <lora:name:scale>, with one scale")
    scale = float(last)
    if not -MOST_SCALE <= scale <= MOST_SCALE:
        raise ValueError(f"has {shown(tag)}; a scale is from {-MOST_SCALE:g} to {MOST_SCALE:g}")
    return LoraUse(reference.strip(), scale, input_name)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
