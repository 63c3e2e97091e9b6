"""One way to validate: pydantic checks, and this module says what is wrong in one line.

Settings, requests and ADetailer units are pydantic dataclasses that state default, range and choices of a field where
they declare it. They are strict (``true`` is no number, ``"2"`` neither) and refuse unknown fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, ConfigDict, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from backend.core.errors import UserError, nearest
from backend.core.texts import MAX_SHOWN, bounded, shortened

STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_OUT_OF_RANGE = ("greater_than_equal", "less_than_equal", "finite_number")
_TYPES: Mapping[str, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "tuple": "a list of names",
    "list": "a list of files",
    "Path": "a file",
    "Image": "a picture",
}
"""What a value must be, by its class or the first word of pydantic's error type (``int_parsing``, ``bool_type``)."""

T = TypeVar("T")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(_whole)]
"""An ``int`` that may come as 4.0, because JSON does not tell 4.0 from 4."""

Text = Annotated[str, AfterValidator(bounded)]
"""The type of a text field: at most 20,000 characters."""


def unveiled(value: object) -> object:
    """The text of a secret of Cog, which has the same method as pydantic's."""
    veiled = getattr(value, "get_secret_value", None)
    text = veiled() if veiled else value
    return text.strip() if isinstance(text, str) else text


def _one_word(secret: SecretStr) -> SecretStr:
    """Raises ValueError, which does not quote it, for what cannot be sent as a token."""
    text = secret.get_secret_value()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("is no token: it must be one word of printable ASCII characters")
    return secret


Secret = Annotated[SecretStr, BeforeValidator(unveiled), AfterValidator(_one_word)]
"""The type of a token. It is shown as asterisks wherever it may be printed, and no error quotes it."""


def fields_of(kind: type) -> Mapping[str, FieldInfo]:
    """The fields of a pydantic model or dataclass by name."""
    fields: Mapping[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def validated(kind: type[T], values: Mapping[str, Any], to_error: Callable[[str, str], UserError]) -> T:
    """A ``kind`` (a pydantic model or dataclass) of these values.

    Raises what ``to_error(field, problem)`` makes of the first problem, unknown fields before all others. The field is
    "" where the problem is not that of one field.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        field, problem = _first_problem(error, fields_of(kind), values)
    # Behind the handler, and without the details in a variable: else error and stack frame hold each other, and with
    # them the values, which may be large, until Python looks for cycles.
    raise to_error(field, problem)


def _first_problem(
    error: ValidationError, fields: Mapping[str, FieldInfo], values: Mapping[str, Any]
) -> tuple[str, str]:
    """The field, and what is wrong with it."""
    first = min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN)
    field = str(first["loc"][0]) if first["loc"] else ""
    return field, _problem(first, fields, values.get(field))


def from_text(kind: type[T], text: str) -> T:
    """A ``bool``, ``int`` or ``float`` from text, such as an environment variable's; spaces around it mean nothing.
    Raises ValueError with what it must be."""
    try:
        return TypeAdapter(kind).validate_python(text.strip())
    except ValidationError as error:
        raise ValueError(_problem(error.errors()[0], {}, text)) from None


def _problem(error: ErrorDetails, fields: Mapping[str, FieldInfo], given: object) -> str:
    kind = error["type"]
    name = str(error["loc"][0]) if error["loc"] else ""
    if kind in _UNKNOWN:
        return "is not known" + (nearest(name, fields) or f"; the names are {', '.join(fields)}")
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        offered, wrong = choices(fields[name]), error["input"]
        close = nearest(wrong, offered) if isinstance(wrong, str) else ""
        return f"must be one of {', '.join(offered)}, not {_shown(wrong)}{close}"
    if kind in _OUT_OF_RANGE:
        return f"must be {_range(fields[name])}, not {_shown(error['input'])}"
    if name in fields and _mentions(fields[name].annotation, SecretStr):
        return "must be text"  # without the value
    wanted = error["ctx"]["class"] if kind == "is_instance_of" else kind.partition("_")[0]
    if len(error["loc"]) > 1:  # an item of a list
        if _mentions(fields[name].annotation, Path):
            return "must be a list of files"
        wanted = "tuple"
    return f"must be {_TYPES.get(wanted, wanted)}, not {_shown(given)}"


def _mentions(annotation: object, kind: type) -> bool:
    return annotation is kind or any(_mentions(one, kind) for one in get_args(annotation))


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values that a field takes whose type is a ``Literal``, or a list of such; empty for any other type."""
    return _literals(field.annotation)


def _literals(annotation: object) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next(filter(None, map(_literals, get_args(annotation))), ())


def bounds(field: FieldInfo) -> tuple[float, float]:
    """The least and the greatest value that a field takes, infinite where there is no limit."""
    low = next((one.ge for one in field.metadata if isinstance(one, Ge)), -math.inf)
    high = next((one.le for one in field.metadata if isinstance(one, Le)), math.inf)
    return low, high  # type: ignore[return-value]  # annotated_types knows them only as comparable


def _range(field: FieldInfo) -> str:
    low, high = bounds(field)
    return f"from {low} to {high}" if math.isfinite(high) else f"at least {low}"


def _shown(value: object) -> str:
    """A value as its writer would write it, short enough for one line."""
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]
    try:
        return shortened(json.dumps(value) if value is None or isinstance(value, bool) else repr(value))
    except (ValueError, RecursionError):  # thousands of digits, lists in lists
        return f"a {type(value).__name__} that is too large to be shown"
