"""Which inputs the form has, in which groups, and what may be chosen: those of the schema that this model honours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from backend.api.input_schema import InputSchema, Schema
from backend.core.errors import InputError
from modules.input_checks import InputChecks
from modules.pipeline.stages import STAGES
from modules.request.loras import LORA_INPUTS

FIRST = ("prompt", "negative_prompt", "aspect_ratio", "num_outputs", "seed")
"""What is always seen; the rest is folded away."""
SOURCES = ("image", "mask")
"""Pictures that the tabs above the form take."""
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Size": ("width", "height", "megapixels", "output_megapixels"),
        "Sampling": ("num_inference_steps", "guidance_scale", "sampler", "scheduler", "go_fast"),
        "Picture to start from": ("prompt_strength", "outpaint", "images", "input_image", "control_image"),
        "Prompt": ("prompt_upsampling", "prompt_upsampling_seed"),
        "LoRA": LORA_INPUTS,
        "File": ("output_format", "output_quality"),
    }
)
"""Groups by what their inputs mean. Other inputs are in the group of their stage, and those of none in the last."""
STAGE_GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "generate": "Picture to start from",
        "hires": "Hires fix",
        "adetailer": "Detail pass",
        "upscale": "Upscale",
        "face_enhance": "Upscale",
    }
)
OTHERS = "Others"
SIDE = 64
"""Of the picture with which inputs are tried."""


@dataclass(frozen=True)
class Offered:
    """``properties`` are those of the schema, in its order, without what this model refuses; ``groups`` has the names
    of inputs by the title of their group."""

    properties: Mapping[str, Schema]
    groups: Mapping[str, tuple[str, ...]]

    @property
    def visible(self) -> tuple[str, ...]:
        """The inputs that are not folded away."""
        return tuple(name for name in FIRST if name in self.properties)

    @property
    def form(self) -> tuple[str, ...]:
        """The inputs in the order of the form."""
        return (*self.visible, *(name for names in self.groups.values() for name in names))

    @classmethod
    def of(cls, schema: InputSchema, checks: InputChecks | None, scratch: Path) -> Offered:
        """What ``checks`` let through; all inputs where these are not known. ``scratch`` is a writable folder."""
        properties = schema.properties if checks is None else dict(_honoured(schema, checks, scratch))
        grouped: dict[str, list[str]] = {}
        for name in properties:
            if name not in FIRST and name not in SOURCES:
                grouped.setdefault(_group(name), []).append(name)
        titles = [*GROUPS, *STAGE_GROUPS.values(), OTHERS]
        return cls(properties, {title: tuple(grouped[title]) for title in dict.fromkeys(titles) if title in grouped})


def _group(name: str) -> str:
    for title, names in GROUPS.items():
        if name in names:
            return title
    return next((STAGE_GROUPS.get(stage.name, OTHERS) for stage in STAGES if name in stage.inputs), OTHERS)


def _honoured(schema: InputSchema, checks: InputChecks, scratch: Path) -> Iterator[tuple[str, Schema]]:
    """Every input that some value of can be honoured, with those of its choices that can."""
    picture = scratch / "tried.png"
    Image.new("RGB", (SIDE, SIDE), "grey").save(picture)
    for name, prop in schema.properties.items():
        if "enum" in prop:
            choices = [choice for choice in prop["enum"] if _passes(checks, name, choice, picture)]
            if choices:
                yield name, {**prop, "enum": choices}
        elif prop.get("format") == "uri":
            if _passes(checks, name, picture, picture):
                yield name, prop
        elif prop["type"] == "array":
            if _passes(checks, name, [picture], picture):
                yield name, prop
        elif prop["type"] == "boolean":
            if _passes(checks, name, not prop.get("default"), picture):
                yield name, prop
        elif name != "negative_prompt" or _passes(checks, name, "a word", picture):
            yield name, _with_names(name, prop, checks)


def _passes(checks: InputChecks, name: str, value: object, picture: Path) -> bool:
    """Whether the input is not refused when it is given alone, or with the picture that it needs."""
    for beside in ("", "image", "input_image"):
        inputs: dict[str, Any] = {"prompt": "x", name: value} | ({beside: picture} if beside else {})
        try:
            checks.request(inputs)
        except InputError as error:
            if error.field not in (name, beside):
                return True  # another input has to be given too
        else:
            return True
    return False


def _with_names(name: str, prop: Schema, checks: InputChecks) -> Schema:
    """The schema of a text with the names that are installed, which the form offers."""
    return {**prop, "x-names": list(checks.installed.upscalers)} if name == "upscaler" else prop
