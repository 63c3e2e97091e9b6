"""The inputs of a prediction, as Cog hands them over -> one :class:`~modules.request.image_request.ImageRequest`."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from backend.core.errors import InputError, nearest
from modules.detection.classes import ClassSet
from modules.detection.mediapipe import NAMES as MEDIAPIPE
from modules.detection.mediapipe import why_not
from modules.diffusion.sampler_names import SAMPLERS
from modules.families.family import Family
from modules.request.adetailer_args import MAX_UNITS, units_from_json
from modules.request.adetailer_unit import FACES, HANDS, AdetailerUnit
from modules.request.image_request import Hires, ImageRequest, choose_size, random_seed
from modules.upscaling.discovery import FACE_RESTORERS

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 40_000_000
MAX_BYTES = 128 * 2**20
NO_FACE_RESTORER = f"no face restorer is here; leave it out, or put {FACE_RESTORERS[0]} under weights/"


def only_temporary(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs as they are, when every file among them is a temporary one, which is how Cog's server hands over what
    it was sent.

    Cog also lets a client name a file of the machine. Raises :class:`InputError`, which names the field and not the
    file.
    """
    temporary = Path(tempfile.gettempdir()).resolve()
    for field, value in inputs.items():
        if isinstance(value, Path) and not (value.is_file() and value.resolve().parent == temporary):
            raise InputError(field, "must be sent as a data: URL, or be the http(s) address of a picture")
    return inputs


def read_image(path: Path, field: str) -> Image.Image:
    """A picture given as an input, upright, RGB (or RGBA or L as it is).

    It must be in one of ``IMAGE_FORMATS``, whatever its name says, and its size is judged by the header alone, before
    anything is decoded. Raises :class:`InputError`, which names the field and never the file's path or content.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(field, f"is a file of more than {MAX_BYTES // 2**20} MiB; save it smaller")
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    field,
                    f"is {image.width}x{image.height}; at most {MAX_PIXELS // 1_000_000} megapixels are accepted, "
                    "make it smaller",
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise InputError(
            field, f"is too large; at most {MAX_PIXELS // 1_000_000} megapixels are accepted, make it smaller"
        ) from None
    except FileNotFoundError:
        raise InputError(field, "there is no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise InputError(field, f"is not an image that can be read; give one of {', '.join(IMAGE_FORMATS)}") from None


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
    """The request that the inputs ask for, by what a family can do and what is there: detectors (the first is the
    default), upscalers, a face restorer.

    Raises :class:`InputError` for what cannot be honoured.
    """
    _refuse_what_it_cannot(inputs, family)
    if inputs["upscaler"] and inputs["upscaler"] not in upscalers:
        here = f"use {', '.join(upscalers)}" if upscalers else "there is none"
        raise InputError(
            "upscaler",
            f"'{inputs['upscaler'][:40]}' is not here{nearest(inputs['upscaler'], upscalers)}; leave it out, or {here}",
        )
    if inputs["face_enhance"] and not restores_faces:
        raise InputError("face_enhance", NO_FACE_RESTORER)
    image = read_image(Path(str(inputs["image"])), "image") if inputs["image"] else None
    mask = read_image(Path(str(inputs["mask"])), "mask") if inputs["mask"] else None
    width, height = choose_size(
        family.canvas, inputs["aspect_ratio"], inputs["megapixels"], inputs["width"], inputs["height"], image
    )
    seed = random_seed() if inputs["seed"] is None else inputs["seed"]
    return ImageRequest(
        prompt=inputs["prompt"],
        width=width,
        height=height,
        seed=seed,
        num_outputs=inputs["num_outputs"],
        negative_prompt=inputs["negative_prompt"],
        num_inference_steps=family.steps if inputs["num_inference_steps"] is None else inputs["num_inference_steps"],
        guidance_scale=family.guidance if inputs["guidance_scale"] is None else inputs["guidance_scale"],
        sampler=inputs["sampler"],
        scheduler=inputs["scheduler"],
        go_fast=inputs["go_fast"],
        image=image,
        mask=mask,
        prompt_strength=inputs["prompt_strength"],
        hires=Hires(inputs["hr_scale"], inputs["hr_steps"], inputs["hr_upscaler"], inputs["denoising_strength"])
        if inputs["enable_hr"]
        else None,
        adetailer=adetailer_units(inputs, family, detectors, restores_faces),
        scale=inputs["scale"],
        upscaler=inputs["upscaler"],
        face_enhance=inputs["face_enhance"],
        output_format=inputs["output_format"],
        output_quality=inputs["output_quality"],
        prompt_upsampling=inputs["prompt_upsampling"],
        prompt_upsampling_seed=seed if inputs["prompt_upsampling_seed"] is None else inputs["prompt_upsampling_seed"],
    )


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
