"""Prompts for Qwen3, which reads them as what a user says in a chat."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import Qwen2TokenizerFast

from modules.families.chat_prompt import ChatPrompt, chat_prompt
from modules.families.parts import PartKind
from modules.families.prompt_tokenizer import load_prompt_tokenizer
from modules.families.qwen3 import QWEN3_TOKENIZERS
from modules.families.source import Source


def load_qwen3_chat(source: Source, parts: Mapping[str, PartKind], tokens: int, *, thinking: bool) -> ChatPrompt:
    """The model's tokenizer with its template, for prompts of so many tokens; ``thinking`` is the template's switch.

    Raises :class:`backend.core.errors.WeightsError` for a tokenizer that is missing, damaged or has no template.
    """
    part = source.part("text_encoder", parts)
    folder = source.tokenizer("tokenizer", part, QWEN3_TOKENIZERS)
    tokenizer = load_prompt_tokenizer(Qwen2TokenizerFast, folder, part.config, tokens)
    return chat_prompt(tokenizer, tokens, folder.name, thinking=thinking)
