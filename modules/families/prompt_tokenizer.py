"""How the tokenizer of a text encoder is read, whichever family it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.checkpoints.config import RESTORE, Config
from backend.checkpoints.loader import load_tokenizer
from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompt_tokenizer(kind: Any, folder: Path, encoder: Config, tokens: int = 0) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, of class ``kind``, for the text encoder with this configuration. ``tokens`` is the
    length that prompts are padded to; 0 = what the tokenizer says.

    Raises :class:`WeightsError` for files that are damaged, and for a tokenizer that does not fit its encoder: it
    writes longer sequences than that reads, or has more words.
    """
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(kind, folder)
    with untrusted(f"{folder.name}/tokenizer_config.json"):
        tokenizer("a", padding="max_length", max_length=2, truncation=True, return_tensors="pt")
        length, words = tokens or tokenizer.model_max_length, len(tokenizer)
    longest, known = encoder.get("max_position_embeddings"), encoder.get("vocab_size")
    if longest and not (type(length) is int and 1 <= length <= longest):
        raise WeightsError(
            f"{folder.name}/tokenizer_config.json: model_max_length is {str(length)[:20]}, and the text encoder reads "
            f"{longest} tokens; {RESTORE}"
        )
    if known and words > known:
        raise WeightsError(
            f"{folder.name}/tokenizer.json has {words} words, and the text encoder knows {known}; {RESTORE}"
        )
    return tokenizer
