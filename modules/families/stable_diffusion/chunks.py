"""A prompt as chunks of token ids with their weights, as Stable Diffusion WebUI divides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from modules.diffusion.prompt_text import without_networks
from modules.families.stable_diffusion.emphasis import Segment, segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CHUNKS = 8
MARKS = 2
"""Tokens of a chunk that are no words: its beginning and its end."""
BACKTRACK = 20
"""A chunk ends after its last comma where that is at most so many tokens before its end."""


@dataclass
class Chunk:
    """The ids of the words of a chunk, without the marks around them, and their weights."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Chunks:
    """The chunks of a prompt, at least one, and the words beyond the last one that is allowed."""

    chunks: Sequence[Chunk]
    unread: str = ""

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
        """The token ids of every chunk, 1 x length, with the marks and the padding that the tokenizer has."""
        length = tokenizer.model_max_length
        return [
            torch.tensor(
                [
                    [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id]
                    + [tokenizer.pad_token_id] * (length - MARKS - len(chunk.ids))
                ]
            )
            for chunk in self.chunks
        ]

    def weights(self, length: int) -> list[torch.Tensor | None]:
        """The weights of every chunk's tokens, 1 x length x 1; None where all are 1."""
        return [
            torch.tensor([1.0, *chunk.weights, *[1.0] * (length - 1 - len(chunk.weights))])[None, :, None]
            if any(weight != 1 for weight in chunk.weights)
            else None
            for chunk in self.chunks
        ]


def divided(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Chunks:
    """The chunks of a prompt for this tokenizer. Nothing behind the last chunk is tokenized."""
    size = tokenizer.model_max_length - MARKS
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks = [Chunk()]
    after_comma = 0
    parts = segments(without_networks(prompt))
    for number, part in enumerate(parts):
        if part.breaks:
            chunks.append(Chunk())
            after_comma = 0
        if len(chunks) > MAX_CHUNKS:
            break
        found = tokenizer(part.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for token, (place, _) in zip(found.input_ids, found.offset_mapping, strict=True):
            if len(chunks[-1].ids) == size:
                chunks.append(_moved(chunks[-1], after_comma if token != comma else size))
                after_comma = 0
            if len(chunks) > MAX_CHUNKS:
                moved = tokenizer.decode(chunks[-1].ids)
                return Chunks(chunks[:MAX_CHUNKS], _unread([moved, part.text[place:]], parts[number + 1 :]))
            chunks[-1].ids.append(token)
            chunks[-1].weights.append(part.weight)
            if token == comma:
                after_comma = len(chunks[-1].ids)
    else:
        return Chunks(chunks)
    return Chunks(chunks[:MAX_CHUNKS], _unread([], parts[number:]))


def _moved(chunk: Chunk, after_comma: int) -> Chunk:
    """The next chunk, to which what follows the last comma is moved where that is near."""
    if not after_comma or len(chunk.ids) - after_comma > BACKTRACK:
        return Chunk()
    following = Chunk(chunk.ids[after_comma:], chunk.weights[after_comma:])
    del chunk.ids[after_comma:], chunk.weights[after_comma:]
    return following


def _unread(rest: list[str], parts: Sequence[Segment]) -> str:
    return " ".join(" ".join([*rest, *(part.text for part in parts)]).split())
