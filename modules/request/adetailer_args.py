"""From ADetailer's arguments as JSON text, as its users and WebUIs write them, to units.

An argument of ADetailer that this package does not support is refused by name when it is used, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from backend.core.errors import InputError, nearest
from backend.core.texts import bounded, json_from, shortened
from backend.core.validation import STRICT, WholeNumber, fields_of, validated
from modules.request.adetailer_unit import FACES, AdetailerUnit

MAX_UNITS = 4
PREFIX = "ad_"

UNSUPPORTED: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "use_checkpoint": (False, "the pictures are repainted by the model that generated them"),
        "use_vae": (False, "the model's own autoencoder is used"),
        "use_noise_multiplier": (False, "the noise is not scaled"),
        "use_clip_skip": (False, "the text encoders' usual layers are used"),
        "controlnet_model": ("None", "there is no ControlNet model"),
    }
)
"""Unsupported arguments: the value that asks for nothing, and the reason."""

IGNORED = "is_api"
"""A key that ADetailer adds to every unit; it is ignored."""

OptionalRatio = Annotated[float | None, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class UnusedArguments:
    """Arguments that only count together with one of ``UNSUPPORTED``. A WebUI always sends them, null if unset."""

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

    A WebUI's ``args`` list may be given as it is: its two leading switches (enable, skip img2img) are skipped, but if
    the first is ``false`` there are no units. Raises :class:`InputError` that names the unit and the argument.
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
    try:
        given = json_from(bounded(text))
    except ValueError as problem:
        raise InputError(field, str(problem)) from None
    return given if isinstance(given, list) else [given]


def _unit(given: Mapping[str, Any], where: str, field: str, base: AdetailerUnit) -> AdetailerUnit:
    """``base`` with what one JSON object says."""

    def refused(name: str, problem: str) -> InputError:
        return InputError(field, f"{where}{PREFIX}{name} {problem}" if name else f"{where}{problem}")

    own, unused = fields_of(AdetailerUnit), fields_of(UnusedArguments)
    known = [PREFIX + name for name in (*own, *UNSUPPORTED, *unused)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.removeprefix(PREFIX)
        if key == IGNORED:
            continue
        if key not in known:
            raise InputError(field, f"{where}unknown argument '{shortened(key)}'{nearest(key, known)}")
        if name not in UNSUPPORTED:
            values[name] = value
        elif value not in (UNSUPPORTED[name][0], None):
            raise refused(name, f"cannot be honoured: {UNSUPPORTED[name][1]}; leave it out")
    validated(UnusedArguments, {name: value for name, value in values.items() if name in unused}, refused)
    changes = {name: value for name, value in values.items() if name in own}
    unchanged = {one.name: getattr(base, one.name) for one in fields(base)}
    return validated(AdetailerUnit, {**unchanged, **changes}, refused)
