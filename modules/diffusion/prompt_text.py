"""What the text encoders read of a prompt: how much of it, and what other programs would read differently."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backend.core.texts import MAX_TEXT, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_A_TOKEN = 16
"""So many are tokenized at first for every token that is read; common words have four or five."""
LISTED = 300
"""Characters of unread words that a message lists at most."""

_NETWORK = re.compile(r"<(lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
_MARKUP = re.compile(r"\([^()]*:\s*[+-]?[\d.]+\s*\)|\(\([^()]*\)\)|\[[^\[\]]*\]|\\[()\[\]]|\bBREAK\b")


def without_networks(prompt: str) -> str:
    """The prompt without ``<lora:name:1>`` and its relatives, which are names of files and not words."""
    return _NETWORK.sub("", prompt) if "<" in prompt else prompt


def networks(prompt: str) -> str:
    """The adapters that the prompt names, as it has them."""
    return " ".join(match[0] for match in _NETWORK.finditer(prompt))


def network_notes(name: str, prompt: str) -> list[str]:
    """A line for the adapters that the prompt names and nothing honours; ``name`` is that of the input."""
    found = list(_NETWORK.finditer(prompt))
    hypernets = [shortened(match[0]) for match in found if match[1].lower() == "hypernet"]
    notes = [f"{name}: {', '.join(hypernets[:3])} is left out, only LoRA is supported"] if hypernets else []
    if name.endswith("negative_prompt") and len(found) > len(hypernets):
        notes.append(f"{name}: a LoRA in it does nothing; name it in the prompt, with a negative scale to weaken")
    return notes


def plain_words_notes(name: str, prompt: str, label: str) -> list[str]:
    """A line for the WebUI's markup in a prompt of a family that reads it as plain words: weights, brackets,
    ``BREAK``."""
    found = _MARKUP.search(prompt)
    return [f"{name}: {label} reads '{shortened(found[0])}' as plain words, it knows no weights"] if found else []


def length_notes(name: str, unread: str, tokens: int) -> list[str]:
    """A line for the words that the model does not read, as of :func:`split_at_limit`; ``tokens`` is its limit."""
    words = len(unread.split())
    if not unread:
        return []
    return [f"{name}: the model reads {tokens} tokens; {words} words are beyond: {shortened(unread, LISTED)}"]


def unknown_words_notes(name: str, prompt: str, tokenizer: PreTrainedTokenizerBase, knows: str) -> list[str]:
    """A line for the words of a prompt that are no single token; ``knows`` is what the model draws, "" for a model that
    takes any words."""
    if not knows:
        return []
    words = dict.fromkeys(_WORD.findall(prompt))
    unknown = [word for word in words if not (_is_token(tokenizer, word) or _is_token(tokenizer, word.lower()))]
    listed = shortened(", ".join(unknown), LISTED)
    singular = {word: _singular(word.lower()) for word in unknown}
    known = ", ".join(dict.fromkeys(one for one in singular.values() if one and _is_token(tokenizer, one)))
    advice = f" (it knows: {known})" if known else ""
    return [f"{name}: the demo model knows {knows}; it does not know: {listed}{advice}"] if unknown else []


def _is_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    ids = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _singular(word: str) -> str:
    """One of several: woman of women, hat of hats. "" where the word does not look like several."""
    if word.endswith("men"):
        return f"{word[:-2]}an"
    return word[:-1] if word.endswith("s") else ""


def split_at_limit(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> tuple[str, str]:
    """The beginning of a text, long enough for the ``length`` tokens that are read, and the words beyond that limit,
    "" where all are read.

    Only a part is tokenized of a text that is much longer: a tokenizer works on all that it is given.
    """
    end = min(len(text), MAX_TEXT)
    size = CHARACTERS_A_TOKEN * length
    while True:
        part = _whole_words(text, min(size, end))
        found = tokenizer(part, return_offsets_mapping=True, verbose=False)
        if len(found.input_ids) > length:
            first = found.offset_mapping[length - 1][0]  # its place belongs to the mark that ends a prompt
            return part, text[_word_begin(text, first) :].strip()
        if size >= end:
            return part, text[len(part) :].strip()
        size *= 2


def _whole_words(text: str, size: int) -> str:
    """The first ``size`` characters at most, up to the end of a word where there is one."""
    part = text[:size]
    if size >= len(text) or text[size].isspace():
        return part
    words = part.rsplit(maxsplit=1)
    return part[: part.rindex(words[1])] if len(words) > 1 else part


def _word_begin(text: str, place: int) -> int:
    """Where the word at that place begins."""
    while 0 < place < len(text) and not text[place - 1].isspace() and not text[place].isspace():
        place -= 1
    return place
