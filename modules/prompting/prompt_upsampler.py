"""Prompt upsampling: a language model rewrites a short prompt as a full description.

When this fails, the picture is generated from the user's own prompt, and its record says why.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.core.cancellation import Check, never_canceled
from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.core.timeline import Timeline
from backend.weights.resolver import EMBEDDED
from modules.diffusion.prompt_text import networks, without_networks
from modules.pipeline.base import Feature
from modules.request.image_request import ImageRequest

if TYPE_CHECKING:  # torch comes with these, and the service is imported before it
    from torch import nn

    from backend.llm.language_model import Completion
    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.families.text_writer import TextWriter

logger = logging.getLogger(__name__)

MODEL = "prompt_upsampler"
"""Its name in the model cache and in the memory plan."""
INSTRUCTION = (
    "Rewrite the user's words as one description of a picture, in plain English, in at most {words} words. Keep "
    "everything that they ask for, and add "
    "subject, setting, light, colours and style where they say nothing. Answer with the description alone."
)
TEXT_ENCODER = "text_encoder"
"""The value of the setting that lends the text encoder."""
MOST_BEHIND = 0.1
"""The layers that only writing needs, as a share of those of the text encoder, up to which they are loaded unasked."""
LONGEST = 256
"""Tokens of an answer at most; fewer where the text encoder takes fewer."""

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_TURN = re.compile(r"<start_of_turn>\s*\w+|<\|im_start\|>\s*\w+|<\|start_header_id\|>.*?<\|end_header_id\|>", re.DOTALL)
_MARKUP = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:bos|eos|pad|end_of_turn)>|\[/?INST\]|<</?SYS>>|```\w*|\*\*|__")
_NEXT_SPEAKER = re.compile(r"\n\s*(user|human|system|assistant)\s*:.*", re.DOTALL | re.IGNORECASE)
_OPENING = re.compile(r"\A(?:sure|certainly|of course|okay|here(?:'s| is| are))\b[^\n:]*[:\n]", re.IGNORECASE)
_LABEL = re.compile(r"\A(?:assistant|(?:\w+ )?(?:prompt|description|caption))\s*:\s*", re.IGNORECASE)


def find_prompt_upsampler(
    settings: Settings, embedded: bool, writer: TextWriter | None = None
) -> Path | TextWriter | None:
    """What the setting ``prompt_upsampler`` asks for: a folder, or the text encoder of the model that generates.

    "auto" is the embedded one beside the ``embedded`` models, else the text encoder, where it is nearly all of a
    language model (``writer``), else none. Raises :class:`WeightsError` for what is not there.
    """
    own = settings.weights_path / EMBEDDED / MODEL
    if settings.prompt_upsampler == "auto":
        lent = writer if writer and writer.share <= MOST_BEHIND else None
        return own if embedded and own.is_dir() else lent
    if not settings.prompt_upsampler:
        return None
    if settings.prompt_upsampler == TEXT_ENCODER:
        if writer is None:
            raise WeightsError(
                f"{MODEL}: the text encoder of this model writes nothing, or its files lack the last layers; name the "
                f"folder of a language model in '{MODEL}' in config_optimized.json"
            )
        return writer
    named = own if settings.prompt_upsampler == EMBEDDED else Path(settings.prompt_upsampler).expanduser()
    for folder in (settings.weights_path / named, ROOT / named, named):
        if (folder / "config.json").is_file():
            return folder
    raise WeightsError(
        f"{MODEL}: '{settings.prompt_upsampler}' is no folder with a config.json; change '{MODEL}' in "
        "config_optimized.json"
    )


def cleaned(answer: str) -> str:
    """An answer without what chat models put around it: thoughts, tags of turns, an opening sentence, a label,
    quotes, markdown."""
    text = _NEXT_SPEAKER.sub("", _MARKUP.sub("", _TURN.sub("", _THOUGHT.sub("", answer)))).strip()
    text = _LABEL.sub("", _OPENING.sub("", text).strip())
    text = " ".join(text.split())
    while len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("'", "'"), ("“", "”"), ("«", "»"), ("`", "`")}:
        text = text[1:-1].strip()
    return text


def whole_phrases(text: str) -> str:
    """A text that was cut off, up to the last sentence or else the last phrase that is whole."""
    end = text.rfind(". ")
    return text[: end + 1] if end > 0 else text[: text.rfind(",")] if "," in text else text


class PromptTooLong(ValueError):
    """A prompt that leaves the language model no room for an answer."""


class PromptUpsampler(Feature):
    """Rewrites prompts with the language model of the cache. ``tokens`` is the length that the text encoder takes.

    It is declared like a stage, but it changes the request and runs before the first stage.
    """

    name = MODEL
    inputs = ("prompt_upsampling", "prompt_upsampling_seed")
    models = (MODEL,)
    settings = ("prompt_upsampler",)
    without_models = f"needs a language model; name its folder in '{MODEL}' in config_optimized.json"

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        import backend.llm.language_model  # noqa: F401

    def __init__(self, models: ModelCache, source: Path | TextWriter, tokens: int, fallback: OomFallback) -> None:
        """``source`` is the folder of a language model, or what makes one of the text encoder."""
        from transformers import AutoTokenizer

        from backend.checkpoints.loader import load_tokenizer

        self.cache, self.fallback, self.limit = models, fallback, min(tokens, LONGEST)
        self.components: tuple[str, ...] = (MODEL,)
        self.network: Callable[..., nn.Module] = _alone
        if isinstance(source, Path):
            self.label, folder = source.name, source
        else:
            self.label, folder = source.label, source.tokenizer
            self.components, self.network = (source.encoder, MODEL), source.network
        self.tokenizer: Any = load_tokenizer(AutoTokenizer, folder)

    def rewrite(self, prompt: str, seed: int, check: Check = never_canceled) -> str:
        """The prompt as a full description. ``check`` is called before every token. Raises ValueError when the model
        answers nothing, :class:`PromptTooLong` when it cannot read the whole prompt."""
        from backend.llm.language_model import TransformersModel
        from backend.offload.oom_fallback import Step, Strategy

        def write() -> Completion:
            question = self.asked(prompt)
            with self.cache.on_device(*self.components) as modules:
                model = TransformersModel(self.network(*modules), self.tokenizer, device=self.cache.device)
                if len(self.tokenizer(question, verbose=False).input_ids) + self.limit > model.max_seq_len:
                    raise PromptTooLong
                return model.complete(question, self.limit, seed, check)

        answer = self.fallback.run(Step("prompt", self.components, (), MODEL), [Strategy("the whole prompt", write)])
        text = cleaned(answer.text)
        text = text if answer.ended else whole_phrases(text)
        if not text:
            raise ValueError("the language model answered nothing")
        return text

    def asked(self, prompt: str) -> str:
        """The question in the words that the model was trained on: its own template, where it has one."""
        from backend.llm.chat_template import render_chat  # the declaration of this feature stays light

        instruction = INSTRUCTION.format(words=self.limit // 2)
        if not self.tokenizer.chat_template:
            return f"{instruction}\n\nWords: {prompt}\nDescription:"
        turns = [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
        without_system = [{"role": "user", "content": f"{instruction}\n\n{prompt}"}]  # some models know no system
        return render_chat(self.tokenizer, (turns, without_system), self.label, enable_thinking=False)


def _alone(network: nn.Module) -> nn.Module:
    return network


def upsampled(
    request: ImageRequest, upsampler: PromptUpsampler, timeline: Timeline, check: Check = never_canceled
) -> ImageRequest:
    """The request with its prompt rewritten, where it asks for that. When this fails, the prompt stays as it is and the
    request says why."""
    if not request.prompt_upsampling:
        return request
    with timeline.span("prompt_upsampling"):
        try:
            words, tags = without_networks(request.prompt), networks(request.prompt)
            prompt = upsampler.rewrite(words, request.prompt_upsampling_seed, check)
        except PromptTooLong:
            return _not_rewritten(request, f"the prompt is longer than {upsampler.label} reads")
        except WeightsError as error:  # a line of ours says it all
            logger.warning("the prompt stays as it is: %s", error)
            return _not_rewritten(request, str(error))
        except Exception as error:  # the picture does not depend on it; the log has the cause
            logger.warning("the prompt stays as it is", exc_info=True)
            return _not_rewritten(request, type(error).__name__)
    prompt = f"{prompt} {tags}".strip()
    logger.info("prompt rewritten by %s: %s", upsampler.label, prompt)
    return replace(
        request, original_prompt=request.prompt, prompt=prompt, prompt_note=f"rewritten by {upsampler.label}"
    )


def _not_rewritten(request: ImageRequest, reason: str) -> ImageRequest:
    """The request with its prompt as it is, and the reason."""
    return replace(
        request,
        original_prompt=request.prompt,
        prompt_note=f"not rewritten: {reason}",
        notices=(*request.notices, f"prompt_upsampling: not rewritten, {reason}"),
    )
