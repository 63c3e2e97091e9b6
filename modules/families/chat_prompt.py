"""Prompts of families whose text encoder is a chat model: a prompt is what a user says in the tokenizer's template.

The template is rendered once, at set-up, around a mark. A prompt is then put in place of the mark, which gives the text
that the template would give for it, and no program of a model ever sees a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.core.errors import WeightsError
from backend.llm.chat_template import render_chat
from modules.diffusion.prompt_text import split_at_limit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MARK = "  {prompt}  "
"""With spaces, which a template that strips what is said would take away."""


@dataclass(frozen=True)
class ChatPrompt:
    """A tokenizer and what its template writes ``before`` and ``after`` a prompt. ``tokens`` is the length that texts
    are padded to, and cut off at."""

    tokenizer: PreTrainedTokenizerBase
    before: str
    after: str
    tokens: int

    def ids_and_mask(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The token ids of a prompt and which of them are not padding, both 1 x tokens, on the host."""
        part, _ = split_at_limit(self.tokenizer, f"{self.before}{prompt}{self.after}", self.tokens)
        found = self.tokenizer(part, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt")
        return found.input_ids, found.attention_mask

    def unread(self, prompt: str) -> str:
        """The words of the prompt beyond the limit."""
        return split_at_limit(self.tokenizer, f"{self.before}{prompt}", self.tokens + 1)[1]


def chat_prompt(tokenizer: PreTrainedTokenizerBase, tokens: int, label: str, *, thinking: bool) -> ChatPrompt:
    """The tokenizer's template for one turn of a user, with the switch ``enable_thinking``. Raises
    :class:`WeightsError`, which begins with ``label``, for a template that cannot be used."""
    if not tokenizer.chat_template:
        raise WeightsError(f"{label}: has no chat template; restore its tokenizer_config.json or chat_template.jinja")
    turn = {"role": "user", "content": MARK}
    text = render_chat(tokenizer, [[turn]], label, enable_thinking=thinking)
    before, *after = text.split(MARK)
    if len(after) != 1:
        raise WeightsError(f"{label}: its chat template does not write once, as it is, what a user says")
    return ChatPrompt(tokenizer, before, after[0], tokens)
