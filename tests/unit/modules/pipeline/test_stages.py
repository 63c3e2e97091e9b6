"""What every stage declares, and how a new one is added."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.pictures import PROMPT
from support.predictions import pixels

from backend.api.input_schema import PREDICTOR_FILE, InputSchema
from backend.core.errors import InputError
from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start
from modules.cli.given_inputs import PictureSource
from modules.extension_optimizer import optional_features
from modules.output.image_writer import read_parameters
from modules.pipeline.base import Feature, ImageBatch, Services, Stage
from modules.pipeline.stages import STAGES
from modules.request.image_request import ImageRequest
from modules.request.loras import LORA_INPUTS

REQUEST_INPUTS = ("prompt", "seed", "num_outputs", "model", *LORA_INPUTS, "output_format", "output_quality")
"""The inputs that belong to no stage."""
FEATURES = {**optional_features(), **{stage.name: stage for stage in STAGES}}
MODELS = {"detectors", "face_restorer", "upscaler", "prompt_upsampler", "safety_checker"}
"""The models that features borrow, by their names in the memory plan."""


def test_every_input_belongs_to_one_stage_or_to_the_request() -> None:
    """An input that is new in ``predict.py`` has to be declared by its stage, or in ``REQUEST_INPUTS``."""
    owners = Counter([*REQUEST_INPUTS, *(name for feature in FEATURES.values() for name in feature.inputs)])
    schema = InputSchema()
    assert set(schema.properties) - set(owners) == set(), "belong to no stage"
    assert set(owners) - set(schema.properties) == set(), "are not in predict.py"
    assert [name for name, count in owners.items() if count > 1] == []


@pytest.mark.parametrize("feature", optional_features().values(), ids=lambda feature: feature.name)
def test_what_an_optional_feature_declares_exists(feature: type[Feature]) -> None:
    schema = InputSchema()
    assert all(name in schema.defaults or schema.properties[name].get("nullable") for name in feature.inputs)
    assert schema.validate({"prompt": "a fox", feature.inputs[0]: feature.off})[feature.inputs[0]] is feature.off
    assert {*feature.models, *feature.optional_models} <= MODELS
    assert set(feature.settings) <= {field.name for field in fields(Settings)}


def test_names_and_aliases_are_unique() -> None:
    names = [name for feature in FEATURES.values() for name in (feature.name, *feature.aliases)]
    assert len(names) == len(set(names))


def test_reading_the_declarations_imports_no_heavy_library() -> None:
    code = "import sys, json, modules.extension_optimizer; json.dump(sorted(sys.modules), sys.stdout)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"torch", "diffusers", "transformers", "ultralytics", "cv2", "spandrel"} & set(json.loads(output)) == set()


class Invert(Stage):
    """A toy stage: the negative of every picture, as far as its input says."""

    name = "invert"
    inputs = ("invert_strength",)
    off = 0.0

    @classmethod
    def build(cls, services: Services) -> Self:
        return cls()

    @classmethod
    def options(cls, inputs: Mapping[str, Any]) -> object:
        if 0 < inputs["invert_strength"] < 0.1:
            raise InputError("invert_strength", "is too little to be seen; use 0, or 0.1 or more")
        return inputs["invert_strength"]

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        strength = request.stage_options[self.name]
        assert isinstance(strength, float)
        return batch.with_pictures(
            picture.changed(Image.blend(picture.image, ImageOps.invert(picture.image), strength), Invert=strength)
            for picture in batch.pictures
        )


INVERT_INPUT = 'invert_strength: float = Input(default=0.0, ge=0, le=1, description="How much is inverted."),\n        '


@pytest.fixture(scope="module")
def toy_settings() -> Settings:
    return replace(
        Settings(),
        model="embedded",
        dtype="float32",
        warm_up=False,
        log_level="WARNING",
        disabled_extensions=tuple(optional_features()),
    )


@pytest.fixture(scope="module")
def toy_schema() -> InputSchema:
    source = PREDICTOR_FILE.read_text()
    first = "negative_prompt: str"
    assert source.count(first) == 1
    return InputSchema(source.replace(first, INVERT_INPUT + first))


@pytest.fixture(scope="module")
def toy_service(toy_settings: Settings, toy_schema: InputSchema) -> Service:
    return start(toy_settings, stages=(*STAGES, Invert), schema=toy_schema)


class TestToyStage:
    """A stage is added by its file, its place in the list and its input, and by nothing else."""

    def predicted(self, service: Service, **inputs: Any) -> tuple[Image.Image, Path, dict[str, float]]:
        metrics: dict[str, float] = {}
        given = {"prompt": PROMPT, "seed": 1, "num_inference_steps": 2, "output_format": "png", "megapixels": "0.25"}
        [file] = service.predict({**given, **inputs}, metrics.__setitem__)
        return Image.open(file).convert("RGB"), file, metrics

    def test_it_runs_when_its_input_asks_for_it(self, toy_service: Service) -> None:
        plain, _, metrics = self.predicted(toy_service)
        assert "invert.seconds" not in metrics
        inverted, file, metrics = self.predicted(toy_service, invert_strength=1.0)
        assert np.array_equal(pixels(inverted), 255 - pixels(plain)) and metrics["invert.seconds"] > 0
        text, record = read_parameters(file)
        assert "Invert: 1" in text and record["request"]["stage_options"] == {"invert": 1.0}

    def test_a_file_gives_its_input_again(self, toy_service: Service, toy_schema: InputSchema) -> None:
        _, file, _ = self.predicted(toy_service, invert_strength=0.5)
        inputs, notices = PictureSource(file, toy_schema).inputs({}, toy_service)
        assert inputs["invert_strength"] == 0.5 and notices == []

    def test_an_option_that_cannot_be_given_again_is_told(self, toy_service: Service, toy_schema: InputSchema) -> None:
        _, file, _ = self.predicted(toy_service, invert_strength=0.5)
        source = PictureSource(file, toy_schema)
        source.stage_options = {"invert": 0.05, "watermark": "x"}
        inputs, notices = source.inputs({}, toy_service)
        assert inputs["invert_strength"] == 0.0
        assert sorted(notice.partition(":")[0] for notice in notices) == ["invert", "watermark"]

    def test_its_own_check_refuses_an_input_before_any_model_runs(self, toy_service: Service) -> None:
        with pytest.raises(InputError, match="^invert_strength: is too little to be seen"):
            self.predicted(toy_service, invert_strength=0.05)

    def test_a_range_in_predict_py_holds_for_it(self, toy_service: Service) -> None:
        with pytest.raises(InputError, match="^invert_strength: must be from 0 to 1"):
            self.predicted(toy_service, invert_strength=2.0)

    def test_the_settings_turn_it_off(self, toy_settings: Settings, toy_schema: InputSchema) -> None:
        disabled = (*toy_settings.disabled_extensions, "invert")
        without = start(
            replace(toy_settings, disabled_extensions=disabled), stages=(*STAGES, Invert), schema=toy_schema
        )
        assert [stage.name for stage in without.pipeline.stages] == ["generate"]
        self.predicted(without)
        with pytest.raises(InputError, match="^invert_strength: needs the stage 'invert'"):
            self.predicted(without, invert_strength=1.0)
