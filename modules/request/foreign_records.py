"""JSON that other programs write into their pictures, as a WebUI's text of parameters.

InvokeAI, Fooocus, SwarmUI and NovelAI write one object of named values; ComfyUI writes the graph of its nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from backend.core.texts import json_from
from modules.request.infotext import NEGATIVE

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "steps": "Steps",
        "seed": "Seed",
        "noise_seed": "Seed",
        "cfg": "CFG scale",
        "cfg_scale": "CFG scale",
        "cfgscale": "CFG scale",
        "guidance_scale": "CFG scale",
        "scale": "CFG scale",
        "guidance": "Distilled CFG Scale",
        "fluxguidancescale": "Distilled CFG Scale",
        "sampler": "Sampler",
        "sampler_name": "Sampler",
        "scheduler": "Schedule type",
        "model": "Model",
        "base_model": "Model",
        "ckpt_name": "Model",
        "unet_name": "Model",
    }
)
"""Names in the records -> the WebUI's labels. Where two are there, the first counts."""
PROMPTS = ("prompt", "positive_prompt")
NEGATIVES = ("negative_prompt", "negativeprompt", "uc")
_NODES = (*LABELS, "width", "height")
_MAX_LINKS = 16
"""Between a sampler and the text of its prompt."""
_PAIR = re.compile(r"\D*(\d+)\D+(\d+)\D*")


def as_infotext(text: str) -> str:
    """The WebUI's text for a record of another program, "" for what is none.

    What has no field in that text is named there, so that its reader tells it.
    """
    try:
        record = json_from(text) if text.lstrip().startswith("{") else None
    except ValueError:
        return ""
    if not isinstance(record, dict):
        return ""
    record = record.get("sui_image_params", record)
    if isinstance(record, dict) and any(isinstance(node, dict) and "class_type" in node for node in record.values()):
        record = _of_graph(record)
    if not isinstance(record, dict) or "steps" not in record:
        return ""
    return _written(record)


def _written(record: Mapping[str, Any]) -> str:
    fields: dict[str, str] = {}
    for name, label in LABELS.items():
        if value := _scalar(record.get(name)):
            fields.setdefault(label, value)
    if "Sampler" not in fields and "Schedule type" in fields:  # InvokeAI calls its sampler so
        fields["Sampler"] = fields.pop("Schedule type")
    size = f"{record.get('width')}x{record.get('height')}"
    if match := _PAIR.fullmatch(str(record.get("resolution", ""))):
        size = f"{match[1]}x{match[2]}"
    if "None" not in size:
        fields["Size"] = size
    known = {*LABELS, *PROMPTS, *NEGATIVES, "width", "height", "resolution"}
    tags = _lora_tags(record)
    known |= {"loras", "loraweights"} if tags else set()
    fields |= {name.replace("_", " "): "given" for name, value in record.items() if value and name not in known}
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items())
    prompt, negative = (_first_text(record, names) for names in (PROMPTS, NEGATIVES))
    return "\n".join([" ".join([prompt, *tags]), *([f"{NEGATIVE} {negative}"] if negative else []), line])


def _lora_tags(record: Mapping[str, Any]) -> list[str]:
    """The LoRA of a record as tags: objects with a model and a weight (InvokeAI), lists of name, weight and hash
    (Fooocus), or names with their weights in a list of their own (SwarmUI)."""
    given, weights = record.get("loras"), record.get("loraweights")
    tags: list[str] = []
    one: Any
    for index, one in enumerate(given if isinstance(given, list) else ()):
        weight: Any = weights[index] if isinstance(weights, list) and index < len(weights) else 1
        if isinstance(one, dict):
            one, weight = one.get("model", one.get("lora")), one.get("weight", 1)
        elif isinstance(one, list) and len(one) > 1:
            one, weight = one[0], one[1]
        if (name := _scalar(one)) and (scale := _scalar(weight)):
            tags.append(f"<lora:{name.replace(chr(92), '/').removesuffix('.safetensors')}:{scale}>")
    return tags


def _of_graph(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ComfyUI's nodes by name, and the texts that its sampler or its only encoder reads."""
    nodes = [
        node["inputs"] for node in graph.values() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    ]
    found: dict[str, Any] = {}
    for inputs in nodes:
        for name in _NODES:
            if isinstance(inputs.get(name), str | int | float):
                found.setdefault(name, inputs[name])
    found["loras"] = [
        [inputs["lora_name"], inputs.get("strength_model", 1)] for inputs in nodes if "lora_name" in inputs
    ]
    nodes.sort(key=lambda inputs: "steps" not in inputs)  # samplers first: others have links of these names too
    for wanted, names in (("prompt", ("positive", "guider")), ("negative_prompt", ("negative",))):
        links = (inputs[name] for name in names for inputs in nodes if name in inputs)
        found[wanted] = _linked_text(graph, next(links, None))
    if not found["prompt"]:
        texts = [str(inputs["text"]) for inputs in nodes if isinstance(inputs.get("text"), str)]
        found["prompt"] = texts[0] if len(texts) == 1 else ""
    return found


def _linked_text(graph: Mapping[str, Any], link: Any) -> str:
    """The text that a link leads to, over nodes that change it."""
    for _ in range(_MAX_LINKS):
        node = graph.get(str(link[0])) if isinstance(link, list) and link else None
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict):
            return ""
        text = next((inputs[name] for name in ("text", "t5xxl", "string", "value") if name in inputs), None)
        if isinstance(text, str):
            return text
        link = text or inputs.get("conditioning") or inputs.get("positive")
    return ""


def _first_text(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((record[name].strip() for name in names if isinstance(record.get(name), str)), "")


def _scalar(value: Any) -> str:
    """A value of a field; of an object, as InvokeAI describes its model, the name."""
    if isinstance(value, dict):
        value = value.get("name", value.get("model_name"))
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value
