"""The form has the inputs that a model honours, each once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.requests_data import DETECTORS, EMBEDDED, SDXL

from backend.api.input_schema import InputSchema
from modules.diffusion.profile import ModelProfile
from modules.input_checks import InputChecks, Installed
from modules.request.defaults import STUDIO
from modules.webui.offered import FIRST, SOURCES, Offered

SCHEMA = InputSchema()


def offered(profile: ModelProfile, folder: Path) -> Offered:
    installed = Installed(profile, DETECTORS, ("sharp",), False, {}, frozenset({"face_restorer"}), STUDIO)
    return Offered.of(SCHEMA, InputChecks.of(installed), folder)


def test_without_knowing_the_model_every_input_has_one_place(tmp_path: Path) -> None:
    everything = Offered.of(SCHEMA, None, tmp_path)
    assert sorted((*everything.form, *SOURCES)) == sorted(SCHEMA.properties)
    assert len(set(everything.form)) == len(everything.form)
    assert everything.form[: len(FIRST)] == FIRST


def test_what_a_family_does_not_have_is_not_offered(tmp_path: Path) -> None:
    flux, sdxl = offered(EMBEDDED, tmp_path), offered(SDXL, tmp_path)
    assert "negative_prompt" in sdxl.form and "negative_prompt" not in flux.form
    assert not {"input_image", "control_image", "face_enhance"} & set(flux.form)
    assert {"image", "mask"} <= flux.properties.keys()
    assert {"sampler", "adetailer", "hr_scale", "lora_weights", "disable_safety_checker"} <= set(flux.form)


def test_choices_are_those_that_can_be_honoured(tmp_path: Path) -> None:
    simple = replace(EMBEDDED, inputs=replace(EMBEDDED.inputs, samplers=("Euler",), schedules=("Simple", "Beta")))
    properties = offered(simple, tmp_path).properties
    assert properties["sampler"]["enum"] == ["Euler"]
    assert properties["scheduler"]["enum"] == ["Simple", "Beta"]
    assert properties["upscaler"]["x-names"] == ["sharp"]


def test_an_input_is_in_the_group_of_its_stage(tmp_path: Path) -> None:
    groups = Offered.of(SCHEMA, None, tmp_path).groups
    assert "hr_scale" in groups["Hires fix"] and "ad_prompt" in groups["Detail pass"]
    assert {"scale", "face_enhance"} <= set(groups["Upscale"])
