"""The inputs of a prediction, as Cog hands them over -> one :class:`~modules.request.image_request.ImageRequest`."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from backend.core.errors import InputError, nearest
from backend.core.validation import fields_of, validated
from modules.detection.classes import ClassSet
from modules.detection.mediapipe import NAMES as MEDIAPIPE
from modules.detection.mediapipe import why_not
from modules.diffusion.canvas import ASPECT_RATIOS, MEGAPIXELS, Canvas
from modules.diffusion.sampler_names import SAMPLERS
from modules.families.family import Family
from modules.request.adetailer_args import MAX_UNITS, units_from_json
from modules.request.adetailer_unit import FACES, HANDS, AdetailerUnit
from modules.request.image_request import MAX_SEED, Hires, ImageRequest
from modules.request.input_image import read_image
from modules.upscaling.discovery import FACE_RESTORERS

CUSTOM = "custom"
"""The aspect ratio with which width and height count."""
NO_FACE_RESTORER = f"no face restorer is here; leave it out, or put {FACE_RESTORERS[0]} under weights/"


def adetailer_units(
    inputs: Mapping[str, Any], family: Family, detectors: Mapping[str, ClassSet], restores_faces: bool = False
) -> tuple[AdetailerUnit, ...]:
    """The detail passes, faces first: one over the faces, or those of ``adetailer_args``, and where they are asked for
    those over hands.

    ``ad_prompt`` and ``ad_hands_prompt`` go over the words of the first of each.
    """
    if not inputs["adetailer"]:
        return ()
    units = _units_of(inputs, "adetailer_args", "ad_prompt", FACES)
    _check_units(units, "adetailer_args", family, detectors, restores_faces)
    field = "adetailer_args_hands"
    if inputs[field].strip() or inputs["ad_hands_prompt"]:
        asking = field if inputs[field].strip() else "ad_hands_prompt"
        hands = _units_of(inputs, field, "ad_hands_prompt", HANDS)
        hands = tuple(unit if unit.model else replace(unit, model=_finds("hand", asking, detectors)) for unit in hands)
        _check_units(hands, field, family, detectors, restores_faces)
        if len(units) + len(hands) > MAX_UNITS:
            raise InputError(field, f"has {len(hands)} units beside {len(units)} others; at most {MAX_UNITS} are run")
        units += hands
    return units


def _finds(label: str, field: str, detectors: Mapping[str, ClassSet]) -> str:
    """The detector that finds only this, for units of this input that name none."""
    for name, class_set in detectors.items():
        if class_set.classes == (label,):
            return name
    raise InputError(
        field,
        f"no detector of {label}s is here; leave it out, or bring one: scripts/fetch-weights --only {label}_yolov8n",
    )


def _units_of(inputs: Mapping[str, Any], field: str, words: str, base: AdetailerUnit) -> tuple[AdetailerUnit, ...]:
    """The units of one pair of inputs, JSON and words, each on top of ``base``."""
    units = units_from_json(inputs[field], field, base) if inputs[field].strip() else (base,)
    return (replace(units[0], prompt=inputs[words]), *units[1:]) if units and inputs[words] else units


def _check_units(
    units: Sequence[AdetailerUnit], field: str, family: Family, detectors: Mapping[str, ClassSet], restores_faces: bool
) -> None:
    """Raises :class:`InputError` for what the family or the models that are there cannot do."""
    for unit in units:
        if unit.restore_face and not restores_faces:
            raise InputError(field, f"ad_restore_face cannot be honoured: {NO_FACE_RESTORER}")
        if unit.negative_prompt and not family.negative_prompts:
            raise InputError(field, "ad_negative_prompt cannot be honoured: Flux has no negative prompt; leave it out")
        if unit.use_cfg_scale and not (family.distilled_guidance or family.negative_prompts):
            raise InputError(
                field, f"ad_use_cfg_scale cannot be honoured: {family.name} takes no guidance; leave it out"
            )
        if unit.model and unit.model not in detectors:
            why = f" ({why_not()})" if unit.model in MEDIAPIPE else nearest(unit.model, detectors)
            raise InputError(
                field, f"ad_model '{unit.model}' is not here{why}; leave it out, or use {', '.join(detectors)}"
            )
        name = unit.model or next(iter(detectors), "")
        if unit.model_classes.strip() and (objection := detectors[name].objection(unit.model_classes)):
            raise InputError(field, f"ad_model_classes of {name}: {objection}")


def build_request(
    inputs: Mapping[str, Any],
    family: Family,
    detectors: Mapping[str, ClassSet],
    upscalers: Collection[str] = (),
    restores_faces: bool = False,
) -> ImageRequest:
    """The request that all inputs of ``predict.py`` ask for, by what a family can do and what is there: detectors (the
    first is the default), upscalers, a face restorer.

    Raises :class:`InputError` for what cannot be honoured.
    """
    _refuse_what_it_cannot(inputs, family)
    _refuse_what_is_not_here(inputs, upscalers, restores_faces)
    fields = {name: inputs[name] for name in fields_of(ImageRequest) if name in inputs}
    for name in ("image", "mask"):
        fields[name] = read_image(Path(str(inputs[name])), name) if inputs[name] else None
    fields["width"], fields["height"] = choose_size(
        family.canvas, inputs["aspect_ratio"], inputs["megapixels"], inputs["width"], inputs["height"], fields["image"]
    )
    seed = secrets.randbelow(MAX_SEED + 1) if inputs["seed"] is None else inputs["seed"]
    left_out = {
        "seed": seed,
        "prompt_upsampling_seed": seed,
        "num_inference_steps": family.steps,
        "guidance_scale": family.guidance,
    }
    fields |= {name: value for name, value in left_out.items() if inputs[name] is None}
    fields["hires"] = _hires(inputs) if inputs["enable_hr"] else None
    fields["adetailer"] = adetailer_units(inputs, family, detectors, restores_faces)
    return validated(ImageRequest, fields, InputError)


def _hires(inputs: Mapping[str, Any]) -> Hires:
    names = {"scale": "hr_scale", "steps": "hr_steps", "upscaler": "hr_upscaler", "strength": "denoising_strength"}
    return validated(
        Hires,
        {field: inputs[name] for field, name in names.items()},
        lambda field, problem: InputError(names[field], problem),
    )


def choose_size(
    canvas: Canvas, aspect_ratio: str, megapixels: str, width: int | None, height: int | None, image: Image.Image | None
) -> tuple[int, int]:
    """The size of the first pass: the image's (fitted to the grid and the native area), the custom one, or the
    ratio's. Raises :class:`InputError` for a custom size that is missing or not on the grid."""
    if image is not None:
        area = canvas.native**2 * MEGAPIXELS[megapixels]
        scale = (area / (image.width * image.height)) ** 0.5
        return canvas.fitted(image.width * scale, image.height * scale)
    if aspect_ratio != CUSTOM:
        if aspect_ratio not in ASPECT_RATIOS:
            raise InputError("aspect_ratio", f"unknown ratio '{aspect_ratio}'{nearest(aspect_ratio, ASPECT_RATIOS)}")
        return canvas.size(aspect_ratio, megapixels)
    return _on_the_grid("width", width, canvas), _on_the_grid("height", height, canvas)


def _on_the_grid(name: str, side: int | None, canvas: Canvas) -> int:
    if side is None:
        raise InputError(name, "is needed when aspect_ratio is 'custom'")
    if side % canvas.multiple:
        below = side - side % canvas.multiple
        near = f"{below or canvas.multiple} or {below + canvas.multiple}"
        raise InputError(name, f"must be a multiple of {canvas.multiple} for this model, not {side}; use {near}")
    return side


def _refuse_what_is_not_here(inputs: Mapping[str, Any], upscalers: Collection[str], restores_faces: bool) -> None:
    """Raises :class:`InputError` for models that are not on this machine."""
    name = inputs["upscaler"]
    if name and name not in upscalers:
        here = f"use {', '.join(upscalers)}" if upscalers else "there is none"
        raise InputError("upscaler", f"'{name[:40]}' is not here{nearest(name, upscalers)}; leave it out, or {here}")
    if inputs["face_enhance"] and not restores_faces:
        raise InputError("face_enhance", NO_FACE_RESTORER)


def _refuse_what_it_cannot(inputs: Mapping[str, Any], family: Family) -> None:
    """Raises :class:`InputError` for what only other families can do."""
    if inputs["negative_prompt"].strip() and not family.negative_prompts:
        raise InputError(
            "negative_prompt", "Flux has none; leave it empty, and say in 'prompt' what the picture should show instead"
        )
    if inputs["go_fast"] and family.kind != "flux":
        raise InputError("go_fast", f"is for Flux; {family.name} computes every step")
    if inputs["sampler"] != SAMPLERS[0] and inputs["scheduler"] not in family.solver_schedules:
        takes = " or ".join(family.solver_schedules)
        raise InputError(
            "scheduler",
            f"'{inputs['scheduler']}' goes with the sampler {SAMPLERS[0]}; {inputs['sampler']} takes {takes}",
        )
