"""The inputs of predict.py: each is part of the request, is documented, and has the request's default, range and choices.

Whoever adds an input is told here what is still missing; CONTRIBUTING.md lists the files.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cog
import pytest
from PIL import Image
from support.requests_data import DETECTORS, EMBEDDED, INPUTS, SDXL

from backend.api.input_schema import InputSchema
from backend.core.settings import ROOT, Settings
from backend.core.validation import bounds, choices, fields_of
from modules.detection.classes import ClassSet
from modules.diffusion.canvas import ASPECT_RATIOS, MATCH_INPUT, MEGAPIXELS
from modules.diffusion.profile import ModelProfile
from modules.extension_optimizer import select
from modules.lora.files.references import SOURCES
from modules.lora.files.sources import LoraSources
from modules.request.defaults import STUDIO
from modules.request.image_request import Hires, ImageRequest
from modules.request.parser import HIRES_INPUTS, build_request
from modules.request.sizes import CUSTOM, MATCH_INPUT_IMAGE
from predict import Predictor

SCHEMA = InputSchema()
REQUEST_FIELDS = {
    **fields_of(ImageRequest),
    **{name: fields_of(Hires)[field] for field, name in HIRES_INPUTS.items()},
}
SHARED = [name for name in SCHEMA.properties if name in REQUEST_FIELDS]
"""Inputs that are fields of the request, or of its Hires fix, as they are."""
DERIVED = {"original", "hires", "references", "loras", "original_prompt", "prompt_note", "notices", "stage_options"}
"""Fields of the request that no input has the name of."""
NOT_READ_BY_STAGES = {
    "num_outputs",
    "seed",
    "original_prompt",
    "prompt_note",
    "notices",
    "aspect_ratio",
    "megapixels",
    "inpaint_only_masked",
}
"""Fields that are read through a property of the request, or only written into the file's record."""
LORA = "https://loras.example/ink.safetensors"
CUSTOM_SIZE = {"aspect_ratio": CUSTOM, "width": 512, "height": 512}
COUNTS_ONLY_WITH: Mapping[str, Mapping[str, Any]] = {
    "width": CUSTOM_SIZE,
    "height": CUSTOM_SIZE,
    **dict.fromkeys(HIRES_INPUTS.values(), {"enable_hr": True}),
    "lora_scale": {"lora_weights": LORA},
    "extra_lora_scale": {"extra_lora": LORA},
}
VALUES: Mapping[str, str] = {
    **dict.fromkeys(("lora_weights", "extra_lora"), LORA),
    "hf_lora": "huggingface.co/alice/ink",
    "replicate_weights": "replicate.com/alice/ink",
    "upscaler": "4x-sharp",
    "adetailer_args": '{"ad_mask_k": 1}',
    "adetailer_args_hands": "{}",
    "outpaint": "left=16",
}
"""Values for inputs that do not take any text."""

LEFT_OUT = {"aspect_ratio": "1:1", "megapixels": "1", "output_megapixels": "1", "output_format": "webp"}
"""What inputs mean that are None."""
PROFILES: Mapping[str, ModelProfile] = {
    "go_fast": EMBEDDED,
    **dict.fromkeys(("input_image", "images"), replace(EMBEDDED, inputs=replace(EMBEDDED.inputs, references=(0, 1)))),
    **dict.fromkeys(
        ("megapixels", "output_megapixels"), replace(EMBEDDED, inputs=replace(EMBEDDED.inputs, areas=tuple(MEGAPIXELS)))
    ),
    "control_image": replace(EMBEDDED, inputs=replace(EMBEDDED.inputs, control=True)),
    **dict.fromkeys(
        ("guidance_scale", "guidance"), replace(EMBEDDED, inputs=replace(EMBEDDED.inputs, guidance=(0, 100)))
    ),
}
"""Models for inputs that SDXL does not honour."""


def built(inputs: Mapping[str, Any], profile: ModelProfile) -> ImageRequest:
    detectors = {**DETECTORS, "hand_yolov8n.pt": ClassSet(("hand",))}
    sources = LoraSources(SOURCES)
    request = build_request(inputs, profile, detectors, ["4x-sharp"], restores_faces=True, lora_sources=sources)
    return replace(request, stage_options=select(Settings()).stage_options(inputs))


def another(name: str, than: object, picture: Path) -> object:
    """A value of the input that is not ``than``."""
    prop = SCHEMA.properties[name]
    if prop["type"] == "boolean":
        return not than
    if name in SCHEMA.file_lists:
        return [picture]
    if name in SCHEMA.files:
        return picture
    offered = prop.get("enum") or [prop.get("maximum", 1), prop.get("minimum", 2)]
    if prop["type"] == "string" and "enum" not in prop:
        offered = [VALUES.get(name, "something else")]
    return next(value for value in offered if value != than)


SECRETS = [name for name, prop in SCHEMA.properties.items() if prop.get("x-cog-secret")]


@pytest.mark.parametrize("name", [name for name in SCHEMA.properties if name not in SECRETS])
def test_every_input_changes_the_request(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    base = {**INPUTS, **COUNTS_ONLY_WITH.get(name, {}), **({"image": picture} if name in ("mask", "outpaint") else {})}
    meant = {**vars(STUDIO), **LEFT_OUT}.get(name) if base[name] is None else base[name]
    changed = {**base, name: another(name, meant, picture)}
    profile = PROFILES.get(name, SDXL)
    assert built(changed, profile) != built(base, profile), (
        f"{name} has no effect: give ImageRequest a field of that name, or its stage an option"
    )


@pytest.mark.parametrize("name", SECRETS)
def test_a_token_is_no_part_of_the_request(name: str) -> None:
    inputs = SCHEMA.validate({"prompt": "a fox", "seed": 0, name: "hf_nobody-reads-this"})
    assert built(inputs, SDXL) == built({**inputs, name: None}, SDXL)
    assert "nobody" not in repr(inputs)


def test_every_field_of_the_request_has_an_input() -> None:
    assert [name for name in fields_of(ImageRequest) if name not in {*SCHEMA.properties, *DERIVED}] == []


@pytest.mark.parametrize("name", SHARED)
def test_range_and_choices_are_those_of_the_request(name: str) -> None:
    prop, field = SCHEMA.properties[name], REQUEST_FIELDS[name]
    if name not in ("width", "height"):  # an image may give other sizes
        assert (prop.get("minimum", -math.inf), prop.get("maximum", math.inf)) == bounds(field)
    assert tuple(prop.get("enum", ())) == choices(field)


@pytest.mark.parametrize("name", SHARED)
def test_the_default_is_that_of_the_request(name: str) -> None:
    default = SCHEMA.defaults.get(name)
    if default is not None and name not in ("scale", "adetailer"):  # which a request made in Python has to ask for
        assert default == REQUEST_FIELDS[name].default


def test_the_choices_of_shape_and_area_are_those_of_the_canvas() -> None:
    assert SCHEMA.properties["aspect_ratio"]["enum"] == [*ASPECT_RATIOS, MATCH_INPUT_IMAGE, CUSTOM]
    assert SCHEMA.properties["megapixels"]["enum"] == [*MEGAPIXELS, MATCH_INPUT]


def test_the_readme_has_a_row_for_every_input() -> None:
    table = (ROOT / "README.md").read_text().partition("## Inputs\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert [name for name in SCHEMA.properties if name not in named] == [], (
        "README.md, table of inputs: no row for these"
    )
    assert sorted(named) == sorted(SCHEMA.properties)


def test_every_field_of_the_request_is_read() -> None:
    folders = ("pipeline", "adetailer", "prompting", "output")
    code = "\n".join(path.read_text() for folder in folders for path in (ROOT / "modules" / folder).glob("*.py"))
    fields = [name for name in fields_of(ImageRequest) if name not in NOT_READ_BY_STAGES]
    assert [name for name in fields if not re.search(rf"\brequest\.{name}\b", code)] == [], "no stage uses these"


def test_predict_hands_over_every_input_as_it_is(tmp_path: Path) -> None:
    handed_over: list[Mapping[str, Any]] = []

    async def predict(inputs: Mapping[str, Any], report: object) -> list[Path]:
        handed_over.append(inputs)
        return [tmp_path / "out-0.webp"]

    predictor = Predictor()
    predictor.queue = SimpleNamespace(predict=predict)
    inputs = {name: object() for name in SCHEMA.properties}
    assert asyncio.run(predictor.predict(**inputs)) == [cog.Path(tmp_path / "out-0.webp")]
    assert handed_over == [inputs]
