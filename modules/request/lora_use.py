"""Which LoRA a request uses, and how strongly: from inputs, and from tags such as ``<lora:name:0.8>`` in prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from backend.core.validation import STRICT, Text

MOST_SCALE = 3.0
"""Scales lie between this and its negative."""


@dataclass(frozen=True, config=STRICT)
class LoraUse:
    """One LoRA. ``reference`` is the name of a file or what else the user wrote; at scale 0 it does nothing.
    ``input_name`` is the input that it was given in, which errors name."""

    reference: Text
    scale: Annotated[float, Field(ge=-MOST_SCALE, le=MOST_SCALE)] = 1.0
    input_name: Text = "prompt"
