"""Every problem that pydantic finds is one line with the value and what is allowed."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, create_model
from pydantic.dataclasses import dataclass
from support.held_memory import held_bytes

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.validation import STRICT, WholeNumber, bounds, choices, fields_of, from_text, validated


@dataclass(frozen=True, config=STRICT)
class Form:
    count: Annotated[WholeNumber, Field(ge=1, le=4)] = 1
    least: Annotated[WholeNumber, Field(ge=32)] = 32
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: Annotated[WholeNumber | None, Field(ge=0, le=9)] = None
    switch: bool = False
    words: str = ""
    names: Annotated[tuple[str, ...], Field(strict=False)] = ()
    kind: Literal["webp", "jpg"] = "webp"
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.switch and not self.words:
            raise ValueError("switch needs words")


MODEL = create_model(
    "Model",
    __config__=STRICT,
    words=(str, ...),
    **{name: (field.annotation, field) for name, field in fields_of(Form).items() if name != "words"},
)


def problem(kind: type, values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        validated(kind, values, InputError)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 5}, "count: must be from 1 to 4, not 5"),
        ({"count": 10**400}, f"count: must be from 1 to 4, not 1{'0' * 59}..."),
        ({"count": True}, "count: must be a whole number, not true"),
        ({"count": 1.5}, "count: must be a whole number, not 1.5"),
        ({"count": float("inf")}, "count: must be a whole number, not inf"),
        ({"count": "2"}, "count: must be a whole number, not '2'"),
        ({"count": None}, "count: must be a whole number, not null"),
        ({"least": 31}, "least: must be at least 32, not 31"),
        ({"share": float("nan")}, "share: must be from 0 to 1, not nan"),
        ({"share": -0.1}, "share: must be from 0 to 1, not -0.1"),
        ({"share": False}, "share: must be a number, not false"),
        ({"seed": 10}, "seed: must be from 0 to 9, not 10"),
        ({"switch": 1}, "switch: must be true or false, not 1"),
        ({"words": 3}, "words: must be text, not 3"),
        ({"names": "a"}, "names: must be a list of names, not 'a'"),
        ({"names": ["a", 1]}, "names: must be a list of names, not ['a', 1]"),
        ({"kind": "wepb"}, "kind: must be one of webp, jpg, not 'wepb' (did you mean 'webp'?)"),
        ({"kind": ["webp"]}, "kind: must be one of webp, jpg, not ['webp']"),
        ({"file": "/etc/hostname"}, "file: must be a file, not '/etc/hostname'"),
        ({"wrods": "x", "count": 9}, "wrods: is not known (did you mean 'words'?)"),
    ],
)
@pytest.mark.parametrize("kind", [Form, MODEL])
def test_a_problem_is_one_line(kind: type, values: dict[str, Any], message: str) -> None:
    assert problem(kind, values if kind is Form else {"words": "", **values}) == message


def test_what_is_missing_is_named_but_after_a_name_that_is_not_known() -> None:
    assert problem(MODEL, {}) == "words: is missing"
    assert problem(MODEL, {"wrods": "x"}).startswith("wrods: is not known")


def test_a_problem_of_several_fields_has_no_name() -> None:
    assert problem(Form, {"switch": True}) == ": switch needs words"


def test_good_values_are_of_their_types() -> None:
    form = validated(Form, {"count": 4.0, "share": 1, "names": ["a"], "file": Path("x")}, InputError)
    assert form == Form(count=4, share=1.0, names=("a",), file=Path("x"))
    assert [type(value) for value in (form.count, form.share, form.names)] == [int, float, tuple]


@pytest.mark.parametrize(
    ("kind", "text", "value"), [(int, "-3", -3), (float, "0.5", 0.5), (bool, "yes", True), (bool, "0", False)]
)
def test_text_becomes_a_value(kind: type, text: str, value: object) -> None:
    assert from_text(kind, text) == value and type(from_text(kind, text)) is kind


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (int, "two", "must be a whole number, not 'two'"),
        (int, "1.5", "must be a whole number, not '1.5'"),
        (float, "", "must be a number, not ''"),
        (bool, "maybe", "must be true or false, not 'maybe'"),
    ],
)
def test_text_that_is_no_value_is_named(kind: type, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        from_text(kind, text)


def test_ranges_and_choices_can_be_read_off_a_field() -> None:
    fields = fields_of(Form)
    assert bounds(fields["seed"]) == (0, 9) and bounds(fields["least"]) == (32, float("inf"))
    assert choices(fields["kind"]) == ("webp", "jpg") and choices(fields["words"]) == ()


def test_a_refused_value_is_freed_at_once() -> None:
    """Not when Python looks for cycles next, which may be many large requests later."""
    schema = InputSchema()

    def refuse() -> None:
        for name in ("prompt", "seed", "output_format", "y" * 10**7):
            with contextlib.suppress(InputError):
                schema.validate({"prompt": "x", name: "x" * 10**7})

    refuse()
    gc.collect()
    gc.disable()
    try:
        before = held_bytes()
        for _ in range(5):
            refuse()
        assert held_bytes() - before < 30e6
    finally:
        gc.enable()
