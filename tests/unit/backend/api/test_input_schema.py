"""The schema says what the signature says, and cog.yaml names what is there."""

from __future__ import annotations

import inspect
import json
import typing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import cog
import pytest
import yaml
from jsonschema import Draft7Validator
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

import predict
from backend.api.input_schema import PREDICTOR_FILE, InputSchema, openapi, read_inputs, write_schema
from backend.core.errors import InputError
from backend.core.settings import ROOT
from modules.diffusion.canvas import ASPECT_RATIOS, MEGAPIXELS
from modules.request.image_request import HIRES_UPSCALERS, MAX_SEED, OUTPUT_FORMATS
from modules.request.parser import CUSTOM, build_request

SOURCE = PREDICTOR_FILE.read_text()
FIELDS = {
    name: parameter.default
    for name, parameter in inspect.signature(predict.Predictor.predict).parameters.items()
    if name != "self"
}
HINTS = typing.get_type_hints(predict.Predictor.predict)
FORBIDDEN_VARIABLES = (
    "PATH",
    "PYTHONPATH",
    "CUDA_*",
    "NVIDIA_*",
    "PGET_*",
    "R8_*",
    "REPLICATE_*",
    "HF_HUB_ENABLE_HF_TRANSFER",
)


@pytest.fixture(scope="module")
def schema() -> InputSchema:
    return InputSchema()


def test_the_inputs_are_those_of_the_signature_in_their_order() -> None:
    document, _ = read_inputs(SOURCE)
    assert list(document["properties"]) == list(FIELDS)
    assert [prop["x-order"] for prop in document["properties"].values()] == list(range(len(FIELDS)))


@pytest.mark.parametrize("name", FIELDS)
def test_an_input_is_as_cog_sees_it_at_run_time(schema: InputSchema, name: str) -> None:
    field, prop, hint = FIELDS[name], schema.properties[name], HINTS[name]
    optional = type(None) in typing.get_args(hint)
    kind = typing.get_args(hint)[0] if optional else hint
    assert prop["type"] == {str: "string", int: "integer", float: "number", bool: "boolean", cog.Path: "string"}[kind]
    assert (prop.get("format") == "uri") == (kind is cog.Path)
    assert prop.get("nullable", False) == optional
    assert (name in schema.required) == (field.default is None and not optional)
    assert prop.get("default") == field.default
    assert (prop.get("minimum"), prop.get("maximum")) == (field.ge, field.le)
    assert (prop.get("enum"), prop.get("pattern"), prop.get("minLength")) == (
        field.choices,
        field.regex,
        field.min_length,
    )
    assert prop["description"] == field.description
    assert "\\" not in field.description, "cog build copies escapes as they are"


def test_the_choices_and_ranges_are_those_of_the_request(schema: InputSchema) -> None:
    assert schema.properties["aspect_ratio"]["enum"] == [*ASPECT_RATIOS, CUSTOM]
    assert schema.properties["megapixels"]["enum"] == list(MEGAPIXELS)
    assert schema.properties["output_format"]["enum"] == list(OUTPUT_FORMATS)
    assert schema.properties["seed"]["maximum"] == MAX_SEED
    assert schema.properties["hr_upscaler"]["enum"] == list(HIRES_UPSCALERS)
    ranges = {
        name: prop for name, prop in schema.properties.items() if "minimum" in prop and name not in ("width", "height")
    }
    for name, prop in ranges.items():
        for bound, step in (("minimum", -1), ("maximum", 1)):
            build_request({**INPUTS, "enable_hr": True, name: prop[bound]}, EMBEDDED, DETECTORS)
            with pytest.raises(InputError, match=f"^{name}: "):
                build_request({**INPUTS, "enable_hr": True, name: prop[bound] + step}, EMBEDDED, DETECTORS)


def test_the_document_is_whole() -> None:
    document = openapi(SOURCE)
    assert {"/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"} == set(document["paths"])
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        Draft7Validator.check_schema(document["components"]["schemas"][name])
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"')[0] in document["components"]["schemas"]


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_schema(tmp_path / ".cog" / "schema.json")
    assert json.loads((tmp_path / ".cog" / "schema.json").read_text()) == openapi(SOURCE)
    assert [path.name for path in (tmp_path / ".cog").iterdir()] == ["schema.json"]


@pytest.mark.parametrize(
    ("given", "instead", "message"),
    [
        ("ge=1, le=4", "ge=1, le=LIMIT", "num_outputs: le must be a literal"),
        ("scale: float", "scale: Literal[1, 2]", "scale: type 'Literal"),
        ("seed: Optional[int]", "seed: int", "seed: a default of None needs the type Optional"),
        ("-> list[Path]", "-> tuple[Path]", "must give list"),
        (
            'adetailer: bool = Input(default=True, description="',
            'adetailer: bool = Input(default=True, help="',
            "adetailer: unknown keyword 'help'",
        ),
    ],
)
def test_what_cog_cannot_read_is_refused(given: str, instead: str, message: str) -> None:
    assert given in SOURCE
    with pytest.raises(ValueError, match=message):
        openapi(SOURCE.replace(given, instead, 1))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["prompt=x", "promt=y"], "promt: is not known (did you mean 'prompt'?)"),
        (["zzzzzz=1"], "zzzzzz: is not known; the names are prompt, "),
        (["prompt"], "prompt: has no value; write it as name=value"),
        (["prompt=x", "prompt=y"], "prompt: is given twice"),
        ([], "prompt: is missing"),
        (["prompt="], "prompt: must not be empty"),
        (["prompt=x", "num_outputs=5"], "num_outputs: must be from 1 to 4, not 5"),
        (["prompt=x", "num_outputs=two"], "num_outputs: must be a whole number, not 'two'"),
        (["prompt=x", "num_outputs=1.5"], "num_outputs: must be a whole number, not '1.5'"),
        (["prompt=x", "scale=nan"], "scale: must be from 1 to 8, not nan"),
        (["prompt=x", "scale=big"], "scale: must be a number, not 'big'"),
        (["prompt=x", "width=255"], "width: must be from 256 to 1440, not 255"),
        (["prompt=x", "seed=-1"], "seed: must be from 0 to 4294967295, not -1"),
        (["prompt=x", "aspect_ratio=16:10"], "aspect_ratio: must be one of 1:1, "),
        (["prompt=x", "adetailer=maybe"], "adetailer: must be true or false, not 'maybe'"),
        (["prompt=x", "image=photo.png"], "image: is a file; write it as image=@photo.png"),
    ],
)
def test_a_bad_text_is_one_clear_line(schema: InputSchema, texts: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        schema.validate(schema.parse(texts))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", 3),
        ("prompt", None),
        ("num_outputs", True),
        ("num_outputs", 2.5),
        ("num_outputs", "2"),
        ("adetailer", 1),
        ("image", "/x"),
        ("seed", 10**400),
    ],
)
def test_a_value_of_another_type_is_refused(schema: InputSchema, name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        schema.validate({"prompt": "x", name: value})


def test_good_texts_become_typed_values_with_the_defaults(schema: InputSchema) -> None:
    values = schema.validate(
        schema.parse(["prompt=a=b", "seed=0", "scale=1", "adetailer=no", "image=@a=b.png", "output_format=png"])
    )
    assert list(values) == list(FIELDS)
    assert (values["prompt"], values["seed"], values["scale"], values["adetailer"], values["image"]) == (
        "a=b",
        0,
        1.0,
        False,
        Path("a=b.png"),
    )
    assert (values["num_outputs"], values["width"], values["denoising_strength"]) == (1, None, 0.3)


def test_a_whole_number_from_json_is_an_int(schema: InputSchema) -> None:
    steps = schema.validate({"prompt": "x", "num_inference_steps": 4.0})["num_inference_steps"]
    assert steps == 4
    assert isinstance(steps, int)


def test_half_a_surrogate_pair_which_json_can_hold_is_text(schema: InputSchema) -> None:
    assert schema.validate({"prompt": "a fox \ud83d"})["prompt"] == "a fox \ud83d"


@pytest.fixture(scope="module")
def cog_yaml() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cog.yaml").read_text())
    return config


def test_cog_yaml_names_what_is_there(cog_yaml: dict[str, Any]) -> None:
    build = cog_yaml["build"]
    requirements = (ROOT / build["python_requirements"]).read_text().splitlines()
    assert f"cog=={build['sdk_version']}" in requirements
    assert "python_packages" not in build
    file, _, name = cog_yaml["predict"].partition(":")
    assert (ROOT / file) == PREDICTOR_FILE
    assert hasattr(predict, name)
    for variable in cog_yaml["environment"]:
        assert not any(fnmatch(variable.partition("=")[0], forbidden) for forbidden in FORBIDDEN_VARIABLES)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_and_from_no_special_place(name: str) -> None:
    lines = [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith("#") and line != "-r requirements.txt"
    ]
    assert all(line.count("==") == 1 and " " not in line and "/" not in line for line in lines)
    assert len({line.partition("==")[0] for line in lines}) == len(lines)
