"""What a user writes after ``scripts/predict``: a prompt, inputs, texts in files, and a picture to make again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.texts import MAX_TEXT, says_something

if TYPE_CHECKING:
    from modules.app.service import Service
    from modules.extension_optimizer import Selection
    from modules.request.infotext import Filled

FROM = "--from"
_NAME = re.compile(r"[a-zA-Z_]\w*=")
MISREAD = (AttributeError, LookupError, TypeError, ValueError)
"""What a record raises whose parts are of other kinds than those of ours."""
_UTF8_BYTES = 4
"""Of one character at most."""


def with_prompt_named(words: Sequence[str]) -> list[str]:
    """The words as ``name=value`` texts; one that has no name is the prompt."""
    return [word if _NAME.match(word) else f"prompt={word}" for word in words]


def with_files_read(texts: Sequence[str], schema: InputSchema) -> list[str]:
    """The texts with ``name=@FILE`` of a text input replaced by what the file says; ``@@`` stands for an ``@`` at the
    beginning of a text. Raises :class:`InputError` for a file that cannot be read."""
    return [_with_file_read(text, schema) for text in texts]


def _with_file_read(text: str, schema: InputSchema) -> str:
    name, _, value = text.partition("=")
    prop = schema.properties.get(name, {})
    if not value.startswith("@") or prop.get("type") != "string" or "enum" in prop or prop.get("format") == "uri":
        return text
    return f"{name}={value[1:] if value.startswith('@@') else read_text(name, Path(value[1:])).strip()}"


def read_text(name: str, file: Path) -> str:
    """A text file of at most 20,000 characters."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_UTF8_BYTES * MAX_TEXT + 1)
        return content.decode("utf-8-sig")
    except OSError as error:
        hint = f"; write {name}=@@... for a text that begins with @" if name != FROM else ""
        raise InputError(name, f"cannot read '{file}': {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise InputError(name, f"'{file}' is not UTF-8 text") from None


class PictureSource:
    """The picture, or the text file, that a user wants to make again.

    Raises :class:`InputError` where it does not say how it was made.
    """

    def __init__(self, file: Path, schema: InputSchema) -> None:
        from modules.output.image_writer import read_parameters
        from modules.request.foreign_records import as_infotext
        from modules.request.from_record import inputs_of_record
        from modules.request.infotext import parse

        self.schema = schema
        self.model, self.recorded, self.seed = "", None, 0
        self.stage_options: Mapping[str, object] = {}
        record: dict[str, Any] = {}
        try:
            self.text, record = read_parameters(file)
        except ValueError as error:
            raise InputError(FROM, f"'{file}' is damaged: {error}") from None
        except OSError:  # no picture
            self.text = read_text(FROM, file)
        if record:
            try:
                self.recorded = inputs_of_record(record, schema.properties)
                self.model, self.seed = str(record["model"]["name"]), record["seed"]
                self.stage_options = dict(record["request"].get("stage_options") or {})
            except MISREAD:
                raise InputError(FROM, f"'{file}': the record in the file is not one of this version") from None
            return
        self.text = as_infotext(self.text) or self.text
        if not parse(self.text)[2]:
            raise InputError(FROM, f"'{file}' does not say how it was made; it has no generation parameters")

    def checked(self, given: Mapping[str, object]) -> None:
        """Raises :class:`InputError` for what is wrong whatever the models are."""
        self.schema.validate(self.recorded.under(given) if self.recorded else {"prompt": "x", **given})

    def kept(self, given: Mapping[str, object]) -> tuple[int, int] | None:
        """Number and seed of the one picture that is wanted, where the inputs make others with it; None for all."""
        picture = self.recorded.chosen(given) if self.recorded else None
        return None if picture is None else (picture, self.seed)

    def inputs(self, given: Mapping[str, object], service: Service) -> tuple[dict[str, object], list[str]]:
        """The inputs, of which those that are given win, and what could not be honoured."""
        from modules.request.pictures import REFERENCES

        filled: Filled = self.recorded or service.checks.filled_in(self.text)
        known = {*given, *(REFERENCES if given.keys() & REFERENCES else ())}  # two inputs for the same pictures
        notices = [notice for notice in filled.notices if notice.partition(":")[0] not in known]
        if self.model not in ("", service.model.name):
            notices.append(f"the picture is by '{self.model}', here is {service.model.name}")
        of_stages, lost = _of_stages(self.stage_options, service.extensions, self.schema)
        notices += [
            f"{name}: what the file says of it cannot be given again; give its inputs"
            for name in sorted(lost - given.keys())
        ]
        return self.schema.validate(of_stages | filled.under(given)), notices


def _of_stages(
    options: Mapping[str, object], selection: Selection, schema: InputSchema
) -> tuple[dict[str, object], set[str]]:
    """The inputs of stages that a request kept as ``stage_options``, and the stages of which they are not known.

    Those of a stage that keeps its only input as it is are known; so is what a request keeps that asks for nothing.
    """
    usual = selection.stage_options(schema.validate({"prompt": "x"}))
    stages = {stage.name: stage for stage in selection.enabled_stages}
    found: dict[str, object] = {}
    lost: set[str] = set()
    for name in (name for name, value in options.items() if value != usual.get(name)):
        try:
            (own,) = stages[name].inputs
            values = schema.validate({"prompt": "x", own: options[name]})
            if stages[name].options(values) != options[name]:
                raise InputError(own, "is kept in another form")
            found[own] = options[name]
        except (InputError, KeyError, ValueError):  # refused; no such stage here; several inputs
            lost.add(name)
    return found, lost


def check_texts(inputs: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` for what is wrong with the texts and ADetailer units of valid inputs, whatever the
    models are."""
    from modules.request.adetailer_args import units_from_json

    if not says_something(str(inputs["prompt"])):
        raise InputError("prompt", "is empty; say in words what the picture should show")
    for name in ("adetailer_args", "adetailer_args_hands"):
        if str(inputs[name]).strip():
            units_from_json(str(inputs[name]), name)


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """:func:`check_texts`, and the same for pictures."""
    from modules.request.pictures import check_readable

    check_texts(inputs)
    check_readable(inputs)
