"""A WebUI's text of parameters as inputs: what it names is filled in, what cannot be honoured is told."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from support.requests_data import DETECTORS, EMBEDDED, SCHNELL, SDXL

from backend.api.input_schema import InputSchema
from modules.detection.classes import ClassSet
from modules.diffusion.profile import ModelProfile
from modules.extension_optimizer import Selection
from modules.input_checks import InputChecks
from modules.input_checks import Installed as InstalledHere
from modules.pipeline.stages import STAGES
from modules.request.infotext import Filled, Targets, filled_in, is_infotext, parse

SCHEMA = InputSchema()
TEXT = """masterpiece, (red hair:1.2)
a second line
Negative prompt: blurry, "quoted", time: late
of two lines
Steps: 24, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 123, Size: 832x1216, Model hash: abc, Model: sdxl, \
Denoising strength: 0.4, ADetailer model: face_yolov8n.pt, ADetailer prompt: "a smile, \\"wide\\": yes", \
ADetailer confidence: 0.35, ADetailer dilate erode: 4, ADetailer inpaint only masked: True, \
ADetailer inpaint padding: 48, ADetailer model 2nd: hand_yolov8n.pt, ADetailer confidence 2nd: 0.5, \
ADetailer version: 24.1.1, Hires upscale: 1.5, Hires steps: 10, Hires upscaler: 4x-UltraSharp, Version: v1.10.1"""


def filled(text: str, profile: ModelProfile = SDXL, **detectors: ClassSet) -> Filled:
    return filled_in(text, Targets(profile, {**DETECTORS, **detectors}, ["4x-UltraSharp"], SCHEMA.properties))


def line(fields: str) -> str:
    return f"a fox\nSteps: 20, {fields}"


def test_every_field_of_a_webui_is_filled_in() -> None:
    found = filled(TEXT, **{"hand_yolov8n.pt": ClassSet(("hand",))})
    units = json.loads(found.inputs.pop("adetailer_args"))
    assert found.inputs == {
        "prompt": "masterpiece, (red hair:1.2)\na second line",
        "negative_prompt": 'blurry, "quoted", time: late\nof two lines',
        "num_inference_steps": 24,
        "sampler": "DPM++ 2M",
        "scheduler": "Karras",
        "guidance_scale": 6.5,
        "seed": 123,
        "aspect_ratio": "2:3",
        "megapixels": "1",
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_steps": 10,
        "hr_upscaler": "ESRGAN",
        "upscaler": "4x-UltraSharp",
        "denoising_strength": 0.4,
        "adetailer": True,
        "scale": 1.0,
    }
    assert [unit["ad_model"] for unit in units] == ["face_yolov8n.pt", "hand_yolov8n.pt"]
    assert units[0]["ad_prompt"] == 'a smile, "wide": yes' and units[0]["ad_inpaint_only_masked"] is True
    assert (units[0]["ad_confidence"], units[1]["ad_confidence"]) == (0.35, 0.5)
    assert found.notices == []
    assert SCHEMA.validate(found.inputs)


@pytest.mark.parametrize(
    ("fields", "profile", "told", "inputs"),
    [
        ("Sampler: Euler a", SDXL, "Sampler: 'Euler a' is not here, Euler is used", {}),
        ("Sampler: Euler, Schedule type: Automatic", SDXL, "Schedule type: 'Automatic' is not here, Simple is used", {}),
        ("Sampler: UniPC, Schedule type: Karras", EMBEDDED, "UniPC takes no Karras, Simple is used", {"scheduler": "Simple"}),
        ("CFG scale: 7", EMBEDDED, "CFG scale: 7 is for other models", {}),
        ("CFG scale: 1, Distilled CFG Scale: 3.5", EMBEDDED, "", {"guidance_scale": 3.5}),
        ("CFG scale: 70", SDXL, "CFG scale: 70 is out of range, 10 is used", {"guidance_scale": 10.0}),
        ("Seed: -1", SDXL, "", {}),
        ("Seed: many", SDXL, "Seed: 'many' is no number", {}),
        ("Size: 1000x1000", SDXL, "Size: 1000x1000 is not on the grid of this model, 1024x1024 is used", {"aspect_ratio": "1:1"}),
        ("Size: 512x768", SDXL, "", {"aspect_ratio": "custom", "width": 512, "height": 768}),
        ("Size: 2048x4096", SDXL, "Size: 2048x4096 is not on the grid", {"megapixels": "1"}),
        ("Denoising strength: 0.6", SDXL, "image: the picture was made from another one", {"prompt_strength": 0.6}),
        ("Hires resize: 768x0, Size: 512x512", SDXL, "", {"enable_hr": True, "hr_scale": 1.5}),
        ("Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+", SDXL, "'R-ESRGAN 4x+' is not installed", {"hr_scale": 2.0}),
        ("Hires upscale: 2, Hires upscaler: Latent (antialiased)", SDXL, "Latent is used", {"hr_upscaler": "Latent"}),
        ("ADetailer model: face_yolov9c.pt", SDXL, "face_yolov8n.pt is used", {"adetailer": True}),
        ("ADetailer model: hand_yolov8n.pt", SDXL, "its unit is left out", {"adetailer": False}),
        ("ADetailer model: face_yolov8n.pt, ADetailer confidence: 7", SDXL, "must be from 0 to 1, not 7.0; it is left out", {}),
        ("Clip skip: 2, ENSD: 31337", SDXL, "not honoured: Clip skip, ENSD", {}),
        ("Model: dreamshaper", SDXL, "Model: the picture is by 'dreamshaper', here is sdxl", {}),
        ("Postprocess upscale by: 4", SDXL, "", {"scale": 4.0}),
        ("Sampler: dpmpp_2m_sde, Scheduler: karras", SDXL, "", {"sampler": "DPM++ 2M SDE", "scheduler": "Karras"}),
        ("Sampler: euler, Schedule type: sgm_uniform", EMBEDDED, "", {"sampler": "Euler", "scheduler": "SGM Uniform"}),
        ("Sampler: uni_pc_simple", EMBEDDED, "", {"sampler": "UniPC", "scheduler": "Simple"}),
        ("Guidance Scale: 4.5, Base model: x", EMBEDDED, "the picture is by 'x'", {"guidance_scale": 4.5}),
        ("Size: 512 x 768", SDXL, "", {"width": 512, "height": 768}),
        ("Size: large", SDXL, "Size: 'large' is no size", {}),
        ("Seed: 18446744073709551615", SDXL, "is out of range, 4294967295 is used", {"seed": 4294967295}),
        ('Civitai resources: [{"type":"lora","weight":0.8}], Clip skip: 2', SDXL, "not honoured: Civitai resources, Clip skip", {}),
        ("Sampler: Euler\nTemplate: a {fox|cat}\nNegative Template: x", SDXL, "not honoured: Template, Negative Template", {}),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_told(fields: str, profile: ModelProfile, told: str, inputs: dict[str, Any]) -> None:
    found = filled(line(fields), profile)
    assert {name: found.inputs.get(name) for name in inputs} == inputs
    assert any(told in notice for notice in found.notices) if told else found.notices == []
    assert SCHEMA.validate(found.inputs)


@pytest.mark.parametrize("profile", [EMBEDDED, SCHNELL])
def test_a_model_without_a_negative_prompt_says_that_it_is_left_out(profile: ModelProfile) -> None:
    found = filled(TEXT, profile)
    assert "negative_prompt" not in found.inputs
    assert any("negative_prompt: is left out, Flux has none" in notice for notice in found.notices)


def test_inputs_that_are_given_win() -> None:
    found = filled(TEXT)
    assert found.under({"seed": 5, "enable_hr": False})["seed"] == 5
    assert found.under({"width": 512, "height": 512})["aspect_ratio"] == "custom"
    assert "width" not in filled(line("Size: 512x768")).under({"aspect_ratio": "1:1"})


def test_steps_may_stand_behind_other_fields() -> None:
    text = "a fox\nSampler: UniPC, Steps: 20, Seed: 4"
    assert is_infotext(text) and parse(text) == ("a fox", "", {"Sampler": "UniPC", "Steps": "20", "Seed": "4"})


@pytest.mark.parametrize(
    "text",
    [
        "a fox",
        "Steps: 20",
        "a\nModel: tall, steps: 3",
        "a\nSteps: 3\nand a house",
        "a\nSteps: to the house",
        "Steps: 20, Sampler: Euler",
        "",
    ],
)
def test_a_plain_prompt_is_no_infotext(text: str) -> None:
    assert not is_infotext(text)


def checks() -> InputChecks:
    installed = InstalledHere(SDXL, DETECTORS, ("4x-UltraSharp",), False, {}, frozenset())
    return InputChecks(SCHEMA, Selection(STAGES, {}, (), frozenset()), installed)


def test_an_infotext_in_place_of_the_prompt_fills_the_request() -> None:
    request = checks().request({"prompt": TEXT, "num_inference_steps": 7})
    assert request.prompt.startswith("masterpiece") and request.negative_prompt.startswith("blurry")
    assert (request.seed, request.num_inference_steps, request.width, request.height) == (123, 7, 832, 1216)
    assert request.hires is not None and request.hires.scale == 1.5 and request.scale == 1.0
    assert [unit.prompt for unit in request.adetailer] == ['a smile, "wide": yes']
    assert request.notices == (
        "from the parameters: ADetailer model 2nd: 'hand_yolov8n.pt' is not installed, its unit is left out",
    )


@pytest.mark.parametrize(
    "fields",
    ['"' * 19_000, "a: " * 6_000, ":" * 19_000, '\\"' * 9_000, "ADetailer model: " + "x" * 19_000, "Size: 0x0"],
)
def test_odd_fields_are_read_soon(fields: str) -> None:
    begin = time.process_time()
    found = filled(line(fields))
    assert SCHEMA.validate(found.inputs)["num_inference_steps"] == 20
    assert all(len(notice) < 500 for notice in found.notices)
    assert time.process_time() - begin < 5


def test_parts_are_told_apart_by_their_lines() -> None:
    assert parse("a\nb")[:2] == ("a\nb", "")
    assert parse("Negative prompt: c\nSteps: 3")[:2] == ("", "c")
    assert parse('a\nSteps: 3, X: "b, c: d", Y: e')[2] == {"Steps": "3", "X": "b, c: d", "Y": "e"}
