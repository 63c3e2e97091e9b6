"""The inputs of a prediction, as Cog hands them over -> one :class:`~modules.request.ImageRequest`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from backend.errors import InputError, nearest
from modules.adetailer.arguments import AdetailerUnit, units_from_json
from modules.request import Canvas, Hires, ImageRequest, choose_size, random_seed

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 40_000_000


def read_image(path: Path, field: str) -> Image.Image:
    """A picture given as an input, upright, RGB (or RGBA or L as it is).

    Its size is judged by the header alone, before anything is decoded. Raises :class:`InputError`, which names the field
    and never the file's path or content.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(field, f"is {image.width}x{image.height}; at most {MAX_PIXELS // 1_000_000} megapixels are accepted, make it smaller")
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise InputError(field, f"is too large; at most {MAX_PIXELS // 1_000_000} megapixels are accepted, make it smaller") from None
    except FileNotFoundError:
        raise InputError(field, "there is no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise InputError(field, f"is not an image that can be read; give one of {', '.join(IMAGE_FORMATS)}") from None


def adetailer_units(inputs: Mapping[str, Any], detectors: Collection[str]) -> tuple[AdetailerUnit, ...]:
    """The detail passes: one over the faces, or those of ``adetailer_args``; ``ad_prompt`` goes over the first one's words."""
    if not inputs["adetailer"]:
        return ()
    units = units_from_json(inputs["adetailer_args"], "adetailer_args") if inputs["adetailer_args"].strip() else (AdetailerUnit(),)
    for unit in units:
        if unit.model and unit.model not in detectors:
            raise InputError(
                "adetailer_args", f"ad_model '{unit.model}' is not here{nearest(unit.model, detectors)}; leave it out, or use {', '.join(detectors)}"
            )
    if units and inputs["ad_prompt"]:
        units = (replace(units[0], prompt=inputs["ad_prompt"]), *units[1:])
    return units


def build_request(inputs: Mapping[str, Any], canvas: Canvas, detectors: Collection[str]) -> ImageRequest:
    """The request that the inputs ask for, by a family's sizes and the detectors that are there.

    Raises :class:`InputError` for what cannot be honoured.
    """
    image = read_image(Path(str(inputs["image"])), "image") if inputs["image"] else None
    mask = read_image(Path(str(inputs["mask"])), "mask") if inputs["mask"] else None
    width, height = choose_size(canvas, inputs["aspect_ratio"], inputs["megapixels"], inputs["width"], inputs["height"], image)
    return ImageRequest(
        prompt=inputs["prompt"],
        width=width,
        height=height,
        seed=random_seed() if inputs["seed"] is None else inputs["seed"],
        num_outputs=inputs["num_outputs"],
        num_inference_steps=inputs["num_inference_steps"],
        guidance_scale=inputs["guidance_scale"],
        sampler=inputs["sampler"],
        scheduler=inputs["scheduler"],
        image=image,
        mask=mask,
        prompt_strength=inputs["prompt_strength"],
        hires=Hires(inputs["hr_scale"], inputs["hr_steps"], inputs["hr_upscaler"], inputs["denoising_strength"]) if inputs["enable_hr"] else None,
        adetailer=adetailer_units(inputs, detectors),
        scale=inputs["scale"],
        output_format=inputs["output_format"],
        output_quality=inputs["output_quality"],
    )
