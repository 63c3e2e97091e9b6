"""The inputs of ``predict.py``: read from its source, and values checked against them.

The source is read without running it, as Cog does. Where Cog silently drops what is not a literal, this is an error.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, create_model

from backend.core.errors import InputError
from backend.core.settings import ROOT
from backend.core.texts import MAX_TEXT, bounded
from backend.core.validation import STRICT, Secret, WholeNumber, from_text, validated

PREDICTOR_FILE = ROOT / "predict.py"
Schema = dict[str, Any]

_TYPES: Mapping[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "Path": {"type": "string", "format": "uri"},
    "list[Path]": {"type": "array", "items": {"type": "string", "format": "uri"}},
    "Secret": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
}
_KEYWORDS: Mapping[str, str] = {
    "default": "default",
    "description": "description",
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
}
REF = "#/components/schemas/"
MOST_FILES = 10
"""In one list; a model may take fewer."""


def title(name: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _keywords(call: ast.expr | None, name: str) -> dict[str, Any]:
    """The keywords of one ``Input(...)``, which must be literals that Cog's own reader understands."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Input" or call.args:
        raise ValueError(f"{name}: must be given as Input(keyword=literal, ...)")
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg not in (*_KEYWORDS, "choices"):
            raise ValueError(f"{name}: unknown keyword '{keyword.arg}' of Input")
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise ValueError(
                f"{name}: {keyword.arg} must be a literal, because Cog drops what it would have to compute"
            ) from None
    return values


def _property(name: str, order: int, annotation: ast.expr, call: ast.expr | None) -> tuple[Schema, Schema | None]:
    """The schema of one input, and that of its choices where it has any."""
    kind = ast.unparse(annotation)
    optional = kind.startswith("Optional[") and kind.endswith("]")
    kind = kind.removeprefix("Optional[").removesuffix("]") if optional else kind
    if kind not in _TYPES:
        raise ValueError(f"{name}: type '{kind}' is not one of {', '.join(_TYPES)}")
    given = _keywords(call, name)
    prop: Schema = {"x-order": order}
    choices = None
    if "choices" in given:
        prop["allOf"] = [{"$ref": REF + name}]
        choices = {"title": name, "description": "An enumeration.", "enum": given["choices"], **_TYPES[kind]}
    else:
        prop |= {"title": title(name), **_TYPES[kind]}
    if optional:
        prop["nullable"] = True
    prop |= {_KEYWORDS[keyword]: value for keyword, value in given.items() if keyword != "choices"}
    if prop.get("default", ...) is None and not optional:
        raise ValueError(
            f"{name}: a default of None needs the type Optional[{kind}], else Cog makes the input required"
        )
    return prop, choices


def _signature(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "Predictor":
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and member.name == "predict":
                    return member
    raise ValueError("there is no Predictor.predict()")


def refuse_joined_strings(source: str) -> None:
    """Raises ``ValueError`` for two strings in a row, which Python joins and Cog's reader mangles.

    For those who write the schema; it takes too long to be asked at every start.
    """
    previous = tokenize.NL
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NL, tokenize.COMMENT):
            continue
        if token.type == previous == tokenize.STRING:
            raise ValueError(f"line {token.start[0]}: write one string, because Cog mangles two that Python would join")
        previous = token.type


def read_inputs(source: str) -> tuple[Schema, dict[str, Schema]]:
    """The ``Input`` object schema of ``Predictor.predict()`` in this source, and the schemas of its choices by name.

    Raises ``ValueError``, which names the input, for anything that Cog would drop or refuse.
    """
    function = _signature(source)
    arguments = function.args.args[1:]  # without self
    calls = [None] * (len(arguments) - len(function.args.defaults)) + list(function.args.defaults)
    properties: dict[str, Schema] = {}
    choices: dict[str, Schema] = {}
    for order, (argument, call) in enumerate(zip(arguments, calls, strict=True)):
        if argument.annotation is None:
            raise ValueError(f"{argument.arg}: has no type")
        properties[argument.arg], enumeration = _property(argument.arg, order, argument.annotation, call)
        if enumeration:
            choices[argument.arg] = enumeration
    if function.returns is None or ast.unparse(function.returns) != "list[Path]":
        raise ValueError("predict() must give list[Path]")
    required = [name for name, prop in properties.items() if "default" not in prop]
    return {"title": "Input", "type": "object", "properties": properties, "required": required}, choices


class InputSchema:
    """The inputs by name, for everything that does not come through Cog's server."""

    def __init__(self, source: str | None = None) -> None:
        inputs, choices = read_inputs(source if source is not None else PREDICTOR_FILE.read_text())
        self.properties: dict[str, Schema] = {
            name: {**choices.get(name, {}), **prop} for name, prop in inputs["properties"].items()
        }
        self.required: list[str] = inputs["required"]
        self.defaults: dict[str, object] = {
            name: prop["default"] for name, prop in self.properties.items() if "default" in prop
        }
        self.files = tuple(name for name, prop in self.properties.items() if _is_file(prop))
        """The inputs that are a file."""
        self.file_lists = tuple(name for name, prop in self.properties.items() if _is_file(prop.get("items", {})))
        """Those that are several files."""
        self.secrets: frozenset[str] = frozenset(
            name for name, prop in self.properties.items() if prop.get("x-cog-secret")
        )
        definitions: dict[str, Any] = {name: _definition(prop) for name, prop in self.properties.items()}
        self._model = create_model("Inputs", __config__=STRICT, **definitions)

    def parse(self, texts: Iterable[str]) -> dict[str, object]:
        """``name=value`` texts to typed values; a file input is given as ``name=@path`` and becomes a ``Path``. An
        input that is several files is given once for each.

        Raises :class:`InputError` for another name given twice, or a value that is not of the input's type. A name that
        is no input keeps its text; :meth:`validate` refuses it.
        """
        values: dict[str, Any] = {}
        for text in texts:
            name, separator, value = text.partition("=")
            if not separator:
                raise InputError(name, "has no value; write it as name=value")
            prop = self.properties.get(name, _TYPES["str"])
            if name in self.file_lists:
                values[name] = [*values.get(name, ()), _typed(name, prop["items"], value)]
                continue
            if name in values:
                raise InputError(name, "is given twice")
            values[name] = _typed(name, prop, value)
        return values

    def validate(self, inputs: Mapping[str, object]) -> dict[str, object]:
        """The inputs checked, with the defaults filled in and whole numbers as ``int`` (JSON may say 4.0).

        Raises :class:`InputError` for the first that is unknown, missing, of the wrong type, out of range or not among
        the choices.
        """
        return dict(validated(self._model, inputs, InputError))


def _definition(prop: Schema) -> tuple[Any, Any]:
    """The type and the field of one input, as pydantic's ``create_model`` takes them."""
    kind: Any = Literal[tuple(prop["enum"])] if "enum" in prop else _python_type(prop)
    most = prop.get("maxLength", MAX_TEXT)
    if kind is str:  # not Field(max_length=...), which refuses half a surrogate pair
        kind = Annotated[str, AfterValidator(partial(bounded, most=most))]
    elif kind is Secret:
        kind = Annotated[Secret, AfterValidator(partial(_bounded_secret, most=most))]
    elif "items" in prop:
        kind = Annotated[kind, AfterValidator(_not_too_many)]
    if prop.get("minLength"):
        kind = Annotated[kind, AfterValidator(_not_empty)]
    field = Field(prop.get("default", ...), ge=prop.get("minimum"), le=prop.get("maximum"))
    return kind | None if prop.get("nullable") else kind, field


def _bounded_secret(secret: SecretStr, most: int) -> SecretStr:
    bounded(secret.get_secret_value(), most)
    return secret


def _not_too_many(files: list[Path]) -> list[Path]:
    if len(files) > MOST_FILES:
        raise ValueError(f"has {len(files)} files; at most {MOST_FILES} are taken")
    return files


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _is_file(prop: Schema) -> bool:
    return prop.get("format") == "uri"


def _python_type(prop: Schema) -> Any:
    if _is_file(prop):
        return Path
    if "items" in prop:
        return list[Path]
    if prop.get("format") == "password":
        return Secret
    return {"string": str, "integer": WholeNumber, "number": float, "boolean": bool}[prop["type"]]


def _typed(name: str, prop: Schema, text: str) -> object:
    kind = _python_type(prop)
    if kind in (str, Secret):
        return text
    if kind is Path:
        if not text.startswith("@"):
            raise InputError(name, f"is a file; write it as {name}=@{text or 'picture.png'}")
        return Path(text[1:])
    try:
        return from_text(kind, text)
    except ValueError as problem:
        raise InputError(name, str(problem)) from None
