"""ADetailer's arguments as JSON text, the way its users and WebUIs write them -> units.

What ADetailer knows and this package cannot do is refused by name as soon as it is asked for; it is never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from backend.core.errors import InputError, nearest
from backend.core.validation import STRICT, WholeNumber, fields_of, validated
from modules.request.adetailer_unit import FACES, AdetailerUnit

MAX_UNITS = 4
MAX_TEXT = 20_000
"""Characters of JSON that are read; a real list of units has a few hundred."""
PREFIX = "ad_"

NOT_HERE: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "use_checkpoint": (False, "the pictures are repainted by the model that drew them"),
        "use_vae": (False, "the model's own autoencoder is used"),
        "use_noise_multiplier": (False, "the noise has one strength"),
        "use_clip_skip": (False, "Flux uses the last layer of CLIP"),
        "controlnet_model": ("None", "there is no ControlNet model"),
    }
)
"""What cannot be honoured, the value that asks for nothing, and why."""

PASSED_OVER = "is_api"
"""What ADetailer writes into every unit beside its arguments."""

OptionalRatio = Annotated[float | None, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class WithoutEffect:
    """Arguments that only count beside one of ``NOT_HERE``. A WebUI always sends them, null where there is none."""

    checkpoint: str | None = None
    vae: str | None = None
    noise_multiplier: Annotated[float | None, Field(ge=0.5, le=1.5)] = None
    clip_skip: Annotated[WholeNumber | None, Field(ge=1, le=12)] = None
    controlnet_module: str | None = None
    controlnet_weight: OptionalRatio = None
    controlnet_guidance_start: OptionalRatio = None
    controlnet_guidance_end: OptionalRatio = None


def units_from_json(text: str, field: str, base: AdetailerUnit = FACES) -> tuple[AdetailerUnit, ...]:
    """The enabled units of a JSON text: an object, or a list of up to four. What it leaves out is as in ``base``.

    A WebUI's ``args`` list is understood as it is; its two leading switches (enable, skip img2img) are passed over, but
    a first ``false`` means that nothing is to be done. Raises :class:`InputError` that names the unit and the argument.
    """
    entries = _entries(text, field)
    if entries and entries[0] is False:
        return ()
    units = [entry for entry in entries if not isinstance(entry, bool)]
    if not all(isinstance(unit, dict) for unit in units):
        raise InputError(field, 'must be a JSON object such as {"ad_prompt": "a smiling face"}, or a list of them')
    if len(units) > MAX_UNITS:
        raise InputError(field, f"has {len(units)} units; at most {MAX_UNITS} are run")
    made = [
        _unit(unit, f"unit {number}: " if len(units) > 1 else "", field, base)
        for number, unit in enumerate(units, start=1)
    ]
    return tuple(unit for unit in made if unit.enabled)


def _entries(text: str, field: str) -> list[Any]:
    if len(text) > MAX_TEXT:
        raise InputError(field, f"is {len(text)} characters long; at most {MAX_TEXT} are read")
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"in line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(field, f"is not valid JSON {where}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists
        raise InputError(field, "is not valid JSON") from None
    return given if isinstance(given, list) else [given]


def _unit(given: Mapping[str, Any], where: str, field: str, base: AdetailerUnit) -> AdetailerUnit:
    """``base`` with what one JSON object says."""

    def refused(name: str, problem: str) -> InputError:
        return InputError(field, f"{where}{PREFIX}{name} {problem}" if name else f"{where}{problem}")

    own, without_effect = fields_of(AdetailerUnit), fields_of(WithoutEffect)
    known = [PREFIX + name for name in (*own, *NOT_HERE, *without_effect)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.removeprefix(PREFIX)
        if key == PASSED_OVER:
            continue
        if key not in known:
            raise InputError(field, f"{where}unknown argument '{key}'{nearest(key, known)}")
        if name not in NOT_HERE:
            values[name] = value
        elif value not in (NOT_HERE[name][0], None):
            raise refused(name, f"cannot be honoured: {NOT_HERE[name][1]}; leave it out")
    validated(WithoutEffect, {name: value for name, value in values.items() if name in without_effect}, refused)
    changes = {name: value for name, value in values.items() if name in own}
    unchanged = {one.name: getattr(base, one.name) for one in fields(base)}
    return validated(AdetailerUnit, {**unchanged, **changes}, refused)
