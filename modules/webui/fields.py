"""One input of the schema as one part of the form: its component, and values to and fro."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from backend.api.input_schema import InputSchema, Schema

LEFT_OUT = "left out"
DEFAULT, ON, OFF = "", "on", "off"
"""Of a dropdown: an input that is left out, and the values of one that is true or false."""
NUMBERS = ("integer", "number")
LONG = 2048
"""Texts that may be longer get several lines."""


def component(name: str, prop: Schema) -> Any:
    """The component of an input, with its description and its range."""
    label, info = name.replace("_", " ").capitalize(), _info(prop)
    shared = {"label": label, "info": info, "elem_id": f"input-{name}"}
    default = prop.get("default")
    if "enum" in prop:
        left_out = [(LEFT_OUT, DEFAULT)] if prop.get("nullable") else []
        value = DEFAULT if default is None else default
        return gr.Dropdown([*left_out, *((one, one) for one in prop["enum"])], value=value, **shared)
    if prop.get("format") == "uri":
        return gr.Image(
            label=f"{label}. {info}", type="filepath", image_mode=None, height=220, elem_id=shared["elem_id"]
        )
    if prop["type"] == "array":
        return gr.File(label=f"{label}. {info}", file_count="multiple", file_types=["image"], elem_id=shared["elem_id"])
    if prop["type"] == "boolean":
        if prop.get("nullable"):
            return gr.Dropdown([(LEFT_OUT, DEFAULT), (ON, ON), (OFF, OFF)], value=DEFAULT, **shared)
        return gr.Checkbox(bool(default), **shared)
    if prop["type"] in NUMBERS:
        return _number(prop, default, shared)
    if prop.get("format") == "password":
        return gr.Textbox(type="password", **shared)
    if "x-names" in prop:
        names = [(LEFT_OUT, DEFAULT), *((one, one) for one in prop["x-names"])]
        return gr.Dropdown(names, value=DEFAULT, allow_custom_value=True, **shared)
    lines = 3 if name == "prompt" else 1
    return gr.Textbox(value=default or "", lines=lines, max_lines=8 if prop["maxLength"] > LONG else 1, **shared)


def _number(prop: Schema, default: Any, shared: dict[str, Any]) -> Any:
    least, most = prop.get("minimum"), prop.get("maximum")
    whole = prop["type"] == "integer"
    if default is None or least is None or most is None:  # Gradio's Number makes 0 of one that is left out
        return gr.Textbox("" if default is None else str(default), placeholder=LEFT_OUT, max_lines=1, **shared)
    return gr.Slider(least, most, default, step=1 if whole else 0.05, **shared)


def _info(prop: Schema) -> str:
    least, most = prop.get("minimum"), prop.get("maximum")
    span = f" From {least} to {most}." if least is not None and most is not None else ""
    return f"{prop['description']}{span}"


def given(schema: InputSchema, name: str, value: Any) -> Any:
    """What the user has given as a value of the input; None for what was left out. Raises :class:`InputError` for a
    text that is no number."""
    prop = schema.properties[name]
    if isinstance(value, str) and prop["type"] in NUMBERS:
        value = value.strip()
    if value is None or value == DEFAULT or value == []:
        return None
    if prop.get("format") == "uri":
        return Path(value)
    if prop["type"] == "array":
        return [Path(one) for one in value]
    if prop["type"] == "boolean" and value in (ON, OFF):
        return value == ON
    if isinstance(value, str) and prop["type"] in NUMBERS:
        return schema.parse([f"{name}={value}"])[name]
    return value


def shown(prop: Schema, value: Any) -> Any:
    """A value of the input as its component shows it; None for the one that is left out."""
    if prop.get("format") == "uri":
        return str(value) if value else None
    if prop["type"] == "array":
        return [str(one) for one in value or ()] or None
    if value is None:
        value = prop.get("default")
    if prop["type"] == "boolean" and prop.get("nullable"):
        return {True: ON, False: OFF, None: DEFAULT}[value]
    if prop["type"] == "string":
        return value or DEFAULT
    if prop["type"] in NUMBERS and prop.get("nullable"):
        return DEFAULT if value is None else f"{value:.10g}"
    return value
