"""The inputs of a prediction, as Cog hands them over -> one :class:`~modules.request.image_request.ImageRequest`."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError, nearest
from backend.core.texts import MAX_TEXT
from backend.core.validation import fields_of, validated
from modules.detection.classes import NO_SAM2, ClassSet
from modules.detection.packaged import unavailable_reason
from modules.diffusion.profile import ModelProfile
from modules.diffusion.sampler_names import SAMPLERS
from modules.face_restoration.discovery import NO_FACE_RESTORER
from modules.lora.files.sources import LOCAL_ONLY, LoraSources
from modules.request.adetailer_args import MAX_UNITS, units_from_json
from modules.request.adetailer_unit import FACES, HANDS, MAIN_PROMPT, OWN_MASK, SEPARATOR, AdetailerUnit, longest_prompt
from modules.request.defaults import STUDIO, Defaults
from modules.request.image_request import HIRES_INPUTS, MAX_SEED, Hires, ImageRequest
from modules.request.loras import loras_of
from modules.request.pictures import check_pictures, read_pictures
from modules.request.sizes import check_finished_size, check_mask, check_units_at_size, choose_size
from modules.request.without_effect import latent_notices, without_effect

NOTHING: Mapping[str, str] = MappingProxyType({})


def adetailer_units(
    inputs: Mapping[str, Any],
    profile: ModelProfile,
    detectors: Mapping[str, ClassSet],
    restores_faces: bool = False,
    left_out: Mapping[str, str] = NOTHING,
) -> tuple[AdetailerUnit, ...]:
    """The ADetailer units of a request: those for faces (one, or those of ``adetailer_args``), then those for hands
    where they are asked for.

    ``ad_prompt`` and ``ad_hands_prompt`` replace the prompt of the first unit of each. Raises :class:`InputError`.
    """
    if not inputs["adetailer"]:
        return ()
    if inputs["ad_mask"]:
        detectors = {**detectors, OWN_MASK: ClassSet((OWN_MASK,))}
    units = _units_of(inputs, "adetailer_args", "ad_prompt", FACES)
    _check_units(units, "adetailer_args", profile, detectors, restores_faces, left_out)
    field = "adetailer_args_hands"
    if inputs[field].strip() or inputs["ad_hands_prompt"]:
        asking = field if inputs[field].strip() else "ad_hands_prompt"
        hands = _units_of(inputs, field, "ad_hands_prompt", HANDS)
        hands = tuple(unit if unit.model else replace(unit, model=_finds("hand", asking, detectors)) for unit in hands)
        _check_units(hands, field, profile, detectors, restores_faces, left_out)
        if len(units) + len(hands) > MAX_UNITS:
            raise InputError(field, f"has {len(hands)} units beside {len(units)} others; at most {MAX_UNITS} are run")
        units += hands
    for unit in units:
        for own, main in ((unit.prompt, "prompt"), (unit.negative_prompt, "negative_prompt")):
            _check_length(f"ad_{main}", own, inputs[main])
    return units


def _check_length(field: str, prompt: str, main_prompt: str) -> None:
    """Raises :class:`InputError` for a prompt that becomes too long where it inserts the main prompt."""
    if (length := longest_prompt(prompt, main_prompt)) > MAX_TEXT:
        raise InputError(
            field, f"is {length} characters long with {MAIN_PROMPT} filled in; at most {MAX_TEXT} are read"
        )


def _finds(label: str, field: str, detectors: Mapping[str, ClassSet]) -> str:
    """The detector that finds only this label, for units of the input ``field`` that name none."""
    for name, class_set in detectors.items():
        if class_set.classes == (label,):
            return name
    raise InputError(
        field,
        f"no detector for {label}s is installed; leave it out, or run scripts/fetch-weights --only {label}_yolov8n",
    )


def _units_of(inputs: Mapping[str, Any], field: str, prompt: str, base: AdetailerUnit) -> tuple[AdetailerUnit, ...]:
    """The units of two inputs: ``field`` has the JSON, ``prompt`` the prompt of the first. What they leave out is as in
    ``base``."""
    units = units_from_json(inputs[field], field, base) if inputs[field].strip() else (base,)
    return (replace(units[0], prompt=inputs[prompt]), *units[1:]) if units and inputs[prompt] else units


def _check_units(
    units: Sequence[AdetailerUnit],
    field: str,
    profile: ModelProfile,
    detectors: Mapping[str, ClassSet],
    restores_faces: bool,
    left_out: Mapping[str, str],
) -> None:
    """Raises :class:`InputError` for what the model family or the installed models cannot do."""
    honoured = profile.inputs
    for unit in units:
        if unit.restore_face and not restores_faces:
            raise InputError(field, f"ad_restore_face cannot be honoured: {NO_FACE_RESTORER}")
        if unit.use_cfg_scale and honoured.guidance is None:
            raise InputError(
                field, f"ad_use_cfg_scale cannot be honoured: {profile.name} takes no guidance; leave it out"
            )
        if unit.model == OWN_MASK and OWN_MASK not in detectors:
            raise InputError(field, f"ad_model '{OWN_MASK}' needs the input 'ad_mask'; give it too")
        if unit.model and unit.model not in detectors:
            _refuse_left_out(field, unit.model, left_out)
            reason = unavailable_reason(unit.model)
            why = f" ({reason})" if reason else nearest(unit.model, detectors)
            raise InputError(
                field, f"ad_model '{unit.model}' is not installed{why}; leave it out, or use {', '.join(detectors)}"
            )
        name = unit.model or next(iter(detectors), "")
        if unit.sam and not detectors[name].outlines:
            why = "it is for what a detector finds" if name == OWN_MASK else NO_SAM2
            raise InputError(field, f"ad_sam cannot be honoured: {why}")
        if unit.model_classes.strip() and (problem := detectors[name].problem(unit.model_classes)):
            raise InputError(field, f"ad_model_classes of {name}: {problem}")


def build_request(
    inputs: Mapping[str, Any],
    profile: ModelProfile,
    detectors: Mapping[str, ClassSet],
    upscalers: Collection[str] = (),
    restores_faces: bool = False,
    defaults: Defaults = STUDIO,
    left_out: Mapping[str, str] = NOTHING,
    lora_sources: LoraSources = LOCAL_ONLY,
) -> ImageRequest:
    """The request for the inputs of ``predict.py``, all of them, with the schema's defaults filled in.

    ``profile`` says what the model family honours; ``detectors`` (the first is the default), ``upscalers`` and
    ``restores_faces`` what is installed, ``left_out`` why other files cannot be used, by name; ``defaults`` what is
    meant by None; ``lora_sources`` where a LoRA may come from. Raises :class:`InputError` for what cannot be honoured.
    """
    given, inputs = inputs, defaults.filled(inputs, profile)
    _refuse_unsupported(inputs, profile)
    notices = [*_variant_notices(inputs["model"], profile), *without_effect(given, inputs, profile, defaults)]
    if inputs["go_fast"] and not profile.inputs.go_fast:
        inputs["go_fast"] = False
        notices.append(f"go_fast: has no effect, {profile.inputs.no_go_fast}")
    inputs, rounded = defaults.on_the_grid(inputs, profile.canvas)
    notices += [*rounded, *_guidance_notices(inputs, profile)]
    if profile.inputs.guidance is None:
        inputs |= {"guidance_scale": profile.guidance}
    _refuse_unknown_upscaler(inputs["upscaler"], upscalers, left_out)
    fields = {name: inputs[name] for name in fields_of(ImageRequest) if name in inputs}
    pictures = read_pictures(inputs, profile.inputs)
    fields |= pictures
    fields["width"], fields["height"] = _size(inputs, pictures, profile, defaults)
    seed = secrets.randbelow(MAX_SEED + 1) if inputs["seed"] is None else inputs["seed"]
    seeds = {"seed": seed, "prompt_upsampling_seed": seed}
    fields |= {name: value for name, value in seeds.items() if inputs[name] is None}
    fields["hires"] = _hires(inputs) if inputs["enable_hr"] else None
    notices += latent_notices(fields["hires"])
    units = adetailer_units(inputs, profile, detectors, restores_faces, left_out)
    if not profile.inputs.negative_prompt and any(unit.negative_prompt for unit in units):
        units = tuple(replace(unit, negative_prompt="") for unit in units)
        notices.append(f"ad_negative_prompt: is left out, {profile.inputs.label} has no negative prompt")
    loras = loras_of(inputs, units, lora_sources)
    fields |= {"adetailer": units, "loras": loras.uses, "notices": (*notices, *loras.notices)}
    request = validated(ImageRequest, fields, InputError)
    check_finished_size(request, profile.canvas)
    check_units_at_size(request)
    _check_masks(request)
    return request


def _check_masks(request: ImageRequest) -> None:
    """Raises :class:`InputError` for a mask that has another shape than the picture, or is for nothing."""
    for field, mask in (("mask", request.mask), ("ad_mask", request.ad_mask)):
        if mask:
            check_mask(mask, request.picture_size, field)
    if request.ad_mask and not request.adetailer:
        raise InputError("ad_mask", "is for the detail pass, which is off; turn adetailer on, or leave it out")


def _size(
    inputs: Mapping[str, Any], pictures: Mapping[str, Any], profile: ModelProfile, defaults: Defaults
) -> tuple[int, int]:
    """Width and height of the first pass. Raises :class:`InputError`."""
    if size := defaults.size_from(pictures["image"], inputs["megapixels"], profile):
        return size
    return choose_size(
        profile.canvas,
        inputs["aspect_ratio"],
        inputs["megapixels"],
        inputs["width"],
        inputs["height"],
        pictures["image"] or pictures["control_image"],
        next(iter(pictures["references"]), None),
    )


def _variant_notices(variant: str | None, profile: ModelProfile) -> list[str]:
    """A line where the model is none of those that hosts offer. Raises :class:`InputError` where it is another one."""
    if variant is None or variant == profile.hosted_as:
        return []
    if profile.hosted_as:
        raise InputError(
            "model",
            f"'{variant}' is asked for, and {profile.name} is installed here; leave it out, or set up FLUX.1-{variant} "
            "with the setting 'model'",
        )
    return [f"model: has no effect, the pictures are by {profile.name}"]


def _guidance_notices(inputs: Mapping[str, Any], profile: ModelProfile) -> list[str]:
    """A line where the model takes no guidance and some is asked for, or too little for the negative prompt."""
    honoured, scale = profile.inputs, inputs["guidance_scale"]
    if honoured.guidance is None:
        return [] if scale == profile.guidance else [f"guidance_scale: has no effect, {profile.name} takes no guidance"]
    if inputs["negative_prompt"].strip() and scale <= honoured.negative_above:
        above = f"{honoured.negative_above:g}"
        return [f"negative_prompt: has no effect at a guidance_scale of {scale:g}; give one above {above}"]
    return []


def _hires(inputs: Mapping[str, Any]) -> Hires:
    hires = validated(
        Hires,
        {field: inputs[name] for field, name in HIRES_INPUTS.items()},
        lambda field, problem: InputError(HIRES_INPUTS[field], problem),
    )
    _check_length("hr_prompt", hires.prompt, inputs["prompt"])
    if hires.tiles == "off" and hires.needs_tiles:
        raise InputError("hr_prompt", f"has {SEPARATOR}, which is for tiles; leave it out, or set hr_tiles to on")
    return hires


def _refuse_left_out(field: str, name: str, left_out: Mapping[str, str]) -> None:
    """Raises :class:`InputError` with the reason why a file of this name cannot be used."""
    if reason := left_out.get(name) or left_out.get(Path(name).stem):
        raise InputError(field, f"'{name[:40]}' cannot be used: {reason}")


def _refuse_unknown_upscaler(name: str, upscalers: Collection[str], left_out: Mapping[str, str]) -> None:
    """Raises :class:`InputError` for an upscaler that is not installed."""
    if name and name not in upscalers:
        _refuse_left_out("upscaler", name, left_out)
        others = f"leave it out, or use {', '.join(upscalers)}" if upscalers else "leave it out, no upscaler is"
        raise InputError("upscaler", f"'{name[:40]}' is not installed{nearest(name, upscalers)}; {others}")


def _refuse_unsupported(inputs: Mapping[str, Any], profile: ModelProfile) -> None:
    """Raises :class:`InputError` for inputs that the model family does not honour."""
    honoured, name = profile.inputs, profile.inputs.label
    if inputs["negative_prompt"].strip() and not honoured.negative_prompt:
        raise InputError(
            "negative_prompt",
            f"{name} has none; leave it empty, and say in 'prompt' what the picture should show instead",
        )
    if inputs["go_fast"] and not honoured.go_fast and not honoured.no_go_fast:
        raise InputError("go_fast", f"is not for {name}; leave it out")
    check_pictures(inputs, honoured)
    guidance, (least, most) = inputs["guidance_scale"], honoured.guidance or (0, math.inf)
    if guidance is not None and not least <= guidance <= most:
        raise InputError("guidance_scale", f"must be from {least} to {most} for {name}, not {guidance}")
    sampler, schedule = inputs["sampler"], inputs["scheduler"]
    for field, offered in (("sampler", honoured.samplers), ("scheduler", honoured.schedules)):
        value = inputs[field]
        if value not in offered:
            raise InputError(field, f"must be one of {', '.join(offered)}, not '{value}'{nearest(value, offered)}")
    if sampler != SAMPLERS[0] and schedule not in honoured.solver_schedules:
        takes = " or ".join(honoured.solver_schedules)
        raise InputError("scheduler", f"'{schedule}' goes with the sampler {SAMPLERS[0]}; {sampler} takes {takes}")
