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
NOTHING = (None, "", "None")
"""What a WebUI sends for an argument that is not set."""
ONLY_WITH: Mapping[str, str] = MappingProxyType(
    {
        "inpaint_width": "use_inpaint_width_height",
        "inpaint_height": "use_inpaint_width_height",
        "steps": "use_steps",
        "cfg_scale": "use_cfg_scale",
        "sampler": "use_sampler",
        "scheduler": "use_sampler",
    }
)
"""Arguments that may be unset while their switch is off."""
SCRIPTS, SCRIPT, ARGS = "alwayson_scripts", "adetailer", "args"
"""The names in the JSON of a WebUI's API under which the units lie."""

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

    A WebUI's ``args`` list, or the ``alwayson_scripts`` of its API around it, may be given as it is: its two leading
    switches (enable, skip img2img) are skipped, but if the first is ``false`` there are no units.

    Raises :class:`InputError` that names the unit and the argument.
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
    if text.strip() in NOTHING:
        text = "{}"
    try:
        given = json_from(bounded(text))
    except ValueError as problem:
        raise InputError(field, str(problem)) from None
    given = _args_of_scripts(given, field)
    return given if isinstance(given, list) else [given]


def _args_of_scripts(given: Any, field: str) -> Any:
    """The ``args`` of ADetailer in the JSON of a WebUI's API, or what is given where it is no such JSON."""
    if not isinstance(given, dict) or not given:
        return given
    scripts = given.get(SCRIPTS, given)
    if isinstance(scripts, dict) and (own := [name for name in scripts if name.lower() == SCRIPT]):
        others = [shortened(name) for name in scripts if name != own[0] and _asks(scripts[name])]
        if others:
            raise InputError(
                field, f"has the script '{others[0]}' beside ADetailer, which is not supported; leave it out"
            )
        given = scripts[own[0]]
    elif SCRIPTS in given:
        raise InputError(field, f"has {SCRIPTS} without ADetailer; give its units")
    return given[ARGS] if isinstance(given, dict) and isinstance(given.get(ARGS), list) else given


def _asks(script: Any) -> bool:
    """Whether a script of a WebUI's API is on: it has arguments, and none that switches it off."""
    arguments = script.get(ARGS) if isinstance(script, dict) else script
    if not isinstance(arguments, list) or not arguments:
        return False
    return any(not isinstance(one, dict) or one.get("enabled", True) for one in arguments) and arguments[0] is not False


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
        if name in ONLY_WITH and value in NOTHING and given.get(PREFIX + ONLY_WITH[name]) is not True:
            continue
        if name not in UNSUPPORTED:
            values[name] = None if name in unused and value in NOTHING else value
        elif value not in (UNSUPPORTED[name][0], *NOTHING):
            raise refused(name, f"cannot be honoured: {UNSUPPORTED[name][1]}; leave it out")
    validated(UnusedArguments, {name: value for name, value in values.items() if name in unused}, refused)
    changes = {name: value for name, value in values.items() if name in own}
    unchanged = {one.name: getattr(base, one.name) for one in fields(base)}
    return validated(AdetailerUnit, {**unchanged, **changes}, refused)
