"""The schema says what the signature says, and cog.yaml names what is there."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import cog
import pytest

import predict
from backend.api.input_schema import PREDICTOR_FILE, InputSchema, read_inputs
from backend.api.openapi import openapi
from backend.core.errors import InputError
from backend.core.texts import MAX_TEXT
from backend.core.validation import unveiled

SOURCE = PREDICTOR_FILE.read_text()
FIELDS = {
    name: parameter.default
    for name, parameter in inspect.signature(predict.Predictor.predict).parameters.items()
    if name != "self"
}
HINTS = typing.get_type_hints(predict.Predictor.predict)

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", cog.Path: "string", cog.Secret: "string"}


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
    if kind == list[cog.Path]:
        assert prop["type"] == "array" and prop["items"] == {"type": "string", "format": "uri"}
    else:
        assert prop["type"] == TYPES[kind] and "items" not in prop
    assert prop.get("format") == {cog.Path: "uri", cog.Secret: "password"}.get(kind)
    assert prop.get("x-cog-secret", False) == prop.get("writeOnly", False) == (kind is cog.Secret)
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


@pytest.mark.parametrize(
    ("given", "instead", "message"),
    [
        ("ge=1, le=4", "ge=1, le=LIMIT", "num_outputs: le must be a literal"),
        ("scale: float", "scale: Literal[1, 2]", "scale: type 'Literal"),
        ("seed: Optional[int]", "seed: int", "seed: a default of None needs the type Optional"),
        ("-> list[Path]", "-> tuple[Path]", "must give list"),
        ("What the picture shows, in words.", 'What the picture shows, " "in words.', "write one string"),
        (
            "default=1, ge=1, le=4, description=",
            "default=1, ge=1, le=4, help=",
            "num_outputs: unknown keyword 'help'",
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
        (["prompt=x", "images=a.png"], "images: is a file; write it as images=@a.png"),
        (["prompt=x", *["images=@a.png"] * 11], "images: has 11 files; at most 10 are taken"),
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
        ("images", "/x"),
        ("images", ["/x"]),
        ("images", [Path("x"), 3]),
        ("images", {"0": Path("x")}),
        ("seed", 10**400),
    ],
)
def test_a_value_of_another_type_is_refused(schema: InputSchema, name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        schema.validate({"prompt": "x", name: value})


def test_an_input_that_is_several_files_is_given_once_for_each(schema: InputSchema) -> None:
    assert schema.file_lists == ("images",) and "images" not in schema.files
    values = schema.validate(schema.parse(["prompt=x", "images=@b.png", "images=@a.png"]))
    assert values["images"] == [Path("b.png"), Path("a.png")]
    assert schema.validate({"prompt": "x", "images": []})["images"] == []


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


@pytest.mark.parametrize("given", ["hf_read-this", " hf_read-this\n", cog.Secret("hf_read-this")])
def test_a_token_is_read_and_never_shown(schema: InputSchema, given: object) -> None:
    value = schema.validate({"prompt": "x", "hf_api_token": given})["hf_api_token"]
    assert unveiled(value) == "hf_read-this" and "read" not in f"{value} {value!r}"


@pytest.mark.parametrize(
    "given", [123456, ["123456"], {"123456": 1}, "123456 x", "123456\tx", "123456é", "123456" * 999]
)
def test_an_error_does_not_quote_a_token(schema: InputSchema, given: object) -> None:
    with pytest.raises(InputError, match="^hf_api_token: ") as error:
        schema.validate({"prompt": "x", "hf_api_token": given})
    assert "123456" not in str(error.value)


def test_a_whole_number_from_json_is_an_int(schema: InputSchema) -> None:
    steps = schema.validate({"prompt": "x", "num_inference_steps": 4.0})["num_inference_steps"]
    assert steps == 4
    assert isinstance(steps, int)


def test_half_a_surrogate_pair_which_json_can_hold_is_replaced_and_two_halves_are_joined(schema: InputSchema) -> None:
    assert schema.validate({"prompt": "a fox \ud83d"})["prompt"] == "a fox \ufffd"
    assert schema.validate({"prompt": "a fox \ud83d\ude00"})["prompt"] == "a fox \U0001f600"


SCHEMA = InputSchema()
TEXTS = [
    name
    for name, prop in SCHEMA.properties.items()
    if prop["type"] == "string" and "enum" not in prop and prop.get("format") != "uri"
]


@pytest.mark.parametrize("name", TEXTS)
def test_every_text_input_has_a_limit_that_cog_reads_too(name: str) -> None:
    most = SCHEMA.properties[name]["maxLength"]
    assert 0 < most <= MAX_TEXT
    assert unveiled(SCHEMA.validate({"prompt": "x", name: "x" * most})[name]) == "x" * most
    with pytest.raises(InputError, match=f"^{name}: is {most + 1} characters long; at most {most} are read"):
        SCHEMA.validate({"prompt": "x", name: "x" * (most + 1)})


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, "a\nb\x00\u202e\ud800" * 20, ["[" * 10**6], {"x" * 10**6: 1}, 10**5000],
    ids=["long", "odd", "list", "dict", "digits"],
)
def test_whatever_is_quoted_an_error_is_one_short_line(value: object, schema: InputSchema) -> None:
    for name in ("width", "seed", "output_format", "x" * 10**6, "a\nb"):
        with pytest.raises(InputError) as error:
            schema.validate({"prompt": "x" * (MAX_TEXT + 1), name: value})
        assert str(error.value).isprintable() and len(str(error.value)) <= 2003
