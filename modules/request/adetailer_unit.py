"""The arguments of the detail pass: ADetailer 25.3's names, defaults and ranges, from JSON text to typed units.

What ADetailer knows and this package cannot do is refused by name as soon as it is asked for; it is never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError, nearest
from modules.diffusion.sampler_names import MOST_STRENGTH, SAMPLERS, SCHEDULES

MAX_UNITS = 4
MAX_TEXT = 20_000
"""Characters of JSON that are read; a real list of units has a few hundred."""
PREFIX = "ad_"
OFF = "None"

SORT_ORDERS: Mapping[str, str] = MappingProxyType(
    {
        "None": "None",
        "Position (left to right)": "Left to right",
        "Position (center to edge)": "Center to edge",
        "Area (large to small)": "Area",
    }
)
"""ADetailer's words for the orders of :func:`modules.adetailer.masks.sort_detections`."""

SAME_SCHEDULER = "Use same scheduler"

PROMPT_ORDERS = ("[ASC]", "[DSC]", "[ASC-SIZE]", "[DSC-SIZE]")
"""What a prompt may begin with, as in Impact-Pack: the order of the regions by left edge (then top edge) or by area,
rising or falling."""


@dataclass(frozen=True)
class AdetailerUnit:
    """One detail pass: what to find, which of it to repaint, in which order, and how. Fields are ADetailer's arguments
    without ``ad_``.

    ``model`` is the detector ("" = the package's own for faces, "None" = this unit is off). From ``bbox_sortby`` on
    they are global settings of ADetailer, by its names; here every unit has its own. The three last are this package's.
    """

    model: str = ""
    model_classes: str = ""
    tab_enable: bool = True
    prompt: str = ""
    negative_prompt: str = ""
    confidence: float = 0.3
    mask_filter_method: str = "Area"
    mask_k: int = 0
    mask_min_ratio: float = 0.0
    mask_max_ratio: float = 1.0
    dilate_erode: int = 4
    x_offset: int = 0
    y_offset: int = 0
    mask_merge_invert: str = "None"
    mask_blur: int = 4
    denoising_strength: float = 0.4
    inpaint_only_masked: bool = True
    inpaint_only_masked_padding: int = 32
    use_inpaint_width_height: bool = False
    inpaint_width: int = 512
    inpaint_height: int = 512
    use_steps: bool = False
    steps: int = 28
    use_cfg_scale: bool = False
    cfg_scale: float = 7.0
    use_sampler: bool = False
    sampler: str = "DPM++ 2M Karras"
    scheduler: str = SAME_SCHEDULER
    restore_face: bool = False
    bbox_sortby: str = "None"
    same_seed_for_each_tab: bool = False
    dynamic_denoise_power: float = 0.0
    match_inpaint_bbox_size: str = "Off"
    mask_select: str = ""
    soft_mask: bool = False
    color_correction: bool = False

    @property
    def enabled(self) -> bool:
        return self.tab_enable and self.model != OFF

    @property
    def selected(self) -> frozenset[int]:
        """The numbers of the regions that ``mask_select`` names, from 1; none when all are repainted."""
        return frozenset(int(number) for number in self.mask_select.split(",") if number.strip())

    def strength(self, area_ratio: float) -> float:
        """How much of a region is redrawn whose box covers ``area_ratio`` of the picture: less of a large one with a
        power above 0, more with one below."""
        rest = max(1 - area_ratio, 1e-6)  # of a box that is the picture, 0 could not be raised to a power below 0
        return min(MOST_STRENGTH, self.denoising_strength * math.pow(rest, self.dynamic_denoise_power))

    def sampling(self, sampler: str, schedule: str) -> tuple[str, str]:
        """Sampler and schedule that the unit asks for, where the request has these; names as in
        ``modules/diffusion/samplers.py``.

        An older name holds both, "DPM++ 2M Karras"; a schedule that is named by itself goes over it.
        """
        if not self.use_sampler:
            return sampler, schedule
        old = next((name for name in SCHEDULES if self.sampler.endswith(f" {name}")), "")
        own = old or schedule if self.scheduler == SAME_SCHEDULER else self.scheduler
        return self.sampler.removesuffix(f" {old}") if old else self.sampler, own


RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "confidence": (0, 1),
        "mask_k": (0, math.inf),
        "mask_min_ratio": (0, 1),
        "mask_max_ratio": (0, 1),
        "dilate_erode": (-128, 128),
        "x_offset": (-200, 200),
        "y_offset": (-200, 200),
        "mask_blur": (0, 64),
        "denoising_strength": (0, 1),
        "inpaint_only_masked_padding": (0, 256),
        "inpaint_width": (64, 2048),
        "inpaint_height": (64, 2048),
        "steps": (1, 150),
        "cfg_scale": (0, 30),
        "dynamic_denoise_power": (-10, 10),
        "noise_multiplier": (0.5, 1.5),
        "clip_skip": (1, 12),
        "controlnet_weight": (0, 1),
        "controlnet_guidance_start": (0, 1),
        "controlnet_guidance_end": (0, 1),
    }
)
"""ADetailer's, those of its sliders; of steps and guidance those of the WebUI's."""

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mask_filter_method": ("Area", "Confidence"),
        "mask_merge_invert": ("None", "Merge", "Merge and Invert"),
        "bbox_sortby": tuple(SORT_ORDERS),
        "match_inpaint_bbox_size": ("Off", "Strict", "Free"),
    }
)

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

WITHOUT_EFFECT: Mapping[str, type] = MappingProxyType(
    {
        **{"checkpoint": str, "vae": str, "noise_multiplier": float, "clip_skip": int},
        **{
            "controlnet_module": str,
            "controlnet_weight": float,
            "controlnet_guidance_start": float,
            "controlnet_guidance_end": float,
        },
    }
)
"""Arguments that only count beside one of ``NOT_HERE``, and what they are. A WebUI sends them always, null where
there is none."""
PASSED_OVER = "is_api"
"""What ADetailer writes into every unit beside its arguments."""


FACES = AdetailerUnit()
HANDS = AdetailerUnit(
    confidence=0.28, denoising_strength=0.35, dilate_erode=16, mask_blur=8, inpaint_only_masked_padding=72
)
"""What hands need where nothing else is asked for: surer surroundings than a face, and less freedom."""


def units_from_json(text: str, field: str, base: AdetailerUnit = FACES) -> tuple[AdetailerUnit, ...]:
    """The enabled units of a JSON text: an object, or a list of up to four. What it does not say is as in ``base``.

    A WebUI's ``args`` list is understood as it is; its two leading switches (enable, skip img2img) are passed over, but
    a first ``false`` means that nothing is to be done. Raises :class:`InputError` that names the unit and the argument.
    """
    if len(text) > MAX_TEXT:
        raise InputError(field, f"is {len(text)} characters long; at most {MAX_TEXT} are read")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = (
            f" in line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise InputError(field, f"is not valid JSON{where}") from None
    entries = given if isinstance(given, list) else [given]
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


def _unit(given: Mapping[str, Any], where: str, field: str, base: AdetailerUnit) -> AdetailerUnit:
    kinds = {one.name: type(one.default) for one in fields(AdetailerUnit)}
    known = [PREFIX + name for name in (*kinds, *NOT_HERE, *WITHOUT_EFFECT)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.removeprefix(PREFIX)
        if key == PASSED_OVER:
            continue
        if key not in known:
            raise InputError(field, f"{where}unknown argument '{key}'{nearest(key, known)}")
        if name in NOT_HERE and value not in (NOT_HERE[name][0], None):
            raise InputError(field, f"{where}{key} cannot be honoured: {NOT_HERE[name][1]}; leave it out")
        if name in WITHOUT_EFFECT and value is not None:
            _checked(name, value, WITHOUT_EFFECT[name], f"{where}{key}", field)
        if name in kinds:
            values[name] = _checked(name, value, kinds[name], f"{where}{key}", field)
    unit = replace(base, **values)
    if unit.use_sampler:
        for name, value, offered in zip(
            ("sampler", "scheduler"), unit.sampling(SAMPLERS[0], SCHEDULES[0]), (SAMPLERS, SCHEDULES), strict=True
        ):
            if value not in offered:
                raise InputError(
                    field,
                    f"{where}ad_{name} must be one of {', '.join(offered)}, not "
                    f"'{value[:40]}'{nearest(value, offered)}",
                )
    if unit.mask_min_ratio > unit.mask_max_ratio:
        raise InputError(
            field,
            f"{where}ad_mask_min_ratio is {unit.mask_min_ratio}, more than ad_mask_max_ratio, {unit.mask_max_ratio}",
        )
    return unit


def _checked(name: str, value: Any, kind: type, label: str, field: str) -> Any:
    if kind is float and type(value) is int or kind is int and isinstance(value, float) and value.is_integer():
        value = kind(value)
    if type(value).__name__ != kind.__name__:  # True is no number here
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise InputError(field, f"{label} must be {words[kind]}, not {json.dumps(value)[:40]}")
    if name in RANGES and not RANGES[name][0] <= value <= RANGES[name][1]:
        low, high = RANGES[name]
        raise InputError(
            field,
            f"{label} must be {f'from {low} to {high}' if math.isfinite(high) else f'{low} or more'}, not {value}",
        )
    if name == "match_inpaint_bbox_size" and value == "Strict (SDXL only)":  # as ADetailer's settings have it
        return "Strict"
    if name in CHOICES and value not in CHOICES[name]:
        raise InputError(
            field, f"{label} must be one of {', '.join(CHOICES[name])}, not '{value}'{nearest(value, CHOICES[name])}"
        )
    if name == "mask_select" and not re.fullmatch(r"(\s*[1-9]\d{0,3}\s*(,(?=.)|$))*", value):
        raise InputError(
            field, f"{label} must be numbers of regions in their order, such as 2 or 1, 3, not '{value[:40]}'"
        )
    return value


def prompt_order(unit_prompt: str) -> tuple[str, str]:
    """An order that the prompt begins with (one of ``PROMPT_ORDERS``, or ""), and the prompt without it."""
    words = unit_prompt.lstrip()
    order = next((order for order in PROMPT_ORDERS if words.startswith(order)), "")
    return order, words.removeprefix(order)


def region_prompt(unit_prompt: str, main_prompt: str, index: int) -> str | None:
    """The words for region ``index`` (from 0) of a picture; None when that region is to be skipped.

    ``[SEP]`` parts the unit's prompt, and the last part is for all further regions; ``[PROMPT]`` stands for the main
    prompt, as an empty part does; a part that is exactly ``[SKIP]`` skips its region.
    """
    parts = re.split(r"\s*\[SEP\]\s*", prompt_order(unit_prompt)[1])
    part = parts[min(index, len(parts) - 1)].strip()
    if part == "[SKIP]":
        return None
    return part.replace("[PROMPT]", main_prompt) or main_prompt
