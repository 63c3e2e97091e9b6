"""Which LoRA a request uses: from its inputs, then from the tags in its prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError
from modules.lora.files.references import HUGGING_FACE, REPLICATE, TOKEN_INPUTS
from modules.lora.files.sources import LoraSources
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.lora_use import LoraUse, tagged

MAIN, EXTRA = "lora_weights", "extra_lora"
OTHER_NAMES: Mapping[str, str] = MappingProxyType({"hf_lora": HUGGING_FACE, "replicate_weights": REPLICATE})
"""Inputs of hosted models that mean ``lora_weights``, and the hub that ``owner/model`` is of there."""
HOSTS_SCALE: Mapping[str, float] = MappingProxyType({"hf_lora": 0.8})
"""What ``lora_scale`` is on hosts that call the input so, where it is 1 elsewhere."""
LORA_INPUTS = (MAIN, "lora_scale", EXTRA, "extra_lora_scale", *OTHER_NAMES, *TOKEN_INPUTS.values())
MOST = 32
"""LoRA files that one request uses."""


@dataclass(frozen=True)
class Loras:
    """``notices`` is what of the inputs has no effect, a line each."""

    uses: tuple[LoraUse, ...] = ()
    notices: tuple[str, ...] = ()


def loras_of(inputs: Mapping[str, Any], units: Iterable[AdetailerUnit], sources: LoraSources) -> Loras:
    """The LoRA of all pictures; those of regions stand in the prompts of ``units`` and are only checked.

    Raises :class:`InputError` for a reference that leads nowhere here, a scale out of range, two names for one thing,
    and too many.
    """
    uses: list[LoraUse] = []
    notices: list[str] = []
    main = _main(inputs)
    if main:
        scale = inputs["lora_scale"]
        scale = HOSTS_SCALE.get(main, 1.0) if scale is None else scale
        uses.append(_use(str(inputs[main]), scale, main, sources))
    elif inputs["lora_scale"] not in (None, 1.0):  # forms send what it is anyway
        notices.append(f"lora_scale: has no effect without {MAIN}")
    if extra := str(inputs[EXTRA] or "").strip():
        use = _use(extra, inputs["extra_lora_scale"], EXTRA, sources)
        if uses and use.reference == uses[0].reference:
            notices.append(f"{EXTRA}: is the same as {main} and is left out")
        else:
            uses.append(use)
    elif inputs["extra_lora_scale"] != 1.0:
        notices.append(f"extra_lora_scale: has no effect without {EXTRA}")
    uses += tag_uses(inputs["prompt"], "prompt", sources)
    if len(uses) > MOST:
        raise InputError(uses[-1].input_name, f"names {len(uses)} LoRA files; at most {MOST} are used at once")
    for unit in units:
        tag_uses(unit.prompt, "ad_prompt", sources)
    return Loras(tuple(uses), tuple(notices))


def tag_uses(prompt: str, input_name: str, sources: LoraSources) -> tuple[LoraUse, ...]:
    """The LoRA that the tags of a prompt name. Raises as :func:`loras_of`."""
    try:
        uses = tagged(prompt, input_name)
    except ValueError as problem:
        raise InputError(input_name, str(problem)) from None
    for use in uses:
        sources.references(use.reference, input_name)
    return uses


def _main(inputs: Mapping[str, Any]) -> str:
    """The input that names the first LoRA, "" where none does."""
    given = [name for name in (MAIN, *OTHER_NAMES) if str(inputs[name] or "").strip()]
    if len({str(inputs[name]).strip() for name in given}) > 1:
        raise InputError(given[1], f"is another name of {given[0]}; give one, and a second LoRA as {EXTRA}")
    return given[0] if given else ""


def _use(text: str, scale: float, input_name: str, sources: LoraSources) -> LoraUse:
    meant = sources.references(text, input_name, OTHER_NAMES.get(input_name, ""))
    # owner/model, which may be of several hubs, stays as it was written
    return LoraUse(meant[0].text if len(meant) == 1 else text.strip(), scale, input_name)
