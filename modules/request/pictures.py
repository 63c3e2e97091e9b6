"""The pictures that come with a request: which the model takes, and what they are read as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from backend.core.errors import InputError
from modules.diffusion.profile import FamilyInputs
from modules.request.image_request import shape_problem
from modules.request.input_image import check_shape, read_image, read_mask, read_original, read_transparency
from modules.request.original import Original
from modules.request.outpaint import Margins, read_margins
from modules.request.uploads import files_in

REFERENCES = ("input_image", "images")
"""The inputs that give reference pictures, in their order."""
FILES = ("image", "mask", "ad_mask", "control_image", *REFERENCES)
"""All inputs that give pictures."""
MEANT_FOR: Mapping[str, str] = MappingProxyType(
    {
        "image": "the picture to start from",
        "mask": "white where the picture is painted",
        "input_image": "the picture to edit",
        "control_image": "the picture that says what is where",
    }
)
"""What an input gives, for the error where it is needed."""


def check_pictures(inputs: Mapping[str, Any], honoured: FamilyInputs) -> None:
    """Raises :class:`InputError` for a picture that the model does not take, and for one that it cannot do without.

    A mask may be missing where the model fills: :func:`read_pictures` looks for transparent parts of the image. Of a
    picture that is only finished, the detail pass gives the model what it needs.
    """
    takes = {"image": honoured.image, "mask": honoured.mask, "control_image": honoured.control}
    most = honoured.references[1]
    takes |= dict.fromkeys(REFERENCES, most > 0)
    for field, allowed in takes.items():
        if inputs[field] and not allowed:
            others = [name for name in honoured.needs if name not in ("mask", field)]
            instead = f"give '{others[0]}' in its place" if others else "leave it out"
            raise InputError(field, f"is not for {honoured.label}; {instead}")
    references = [file for name in REFERENCES for file in files_in(inputs[name])]
    if len(references) > most > 0:
        beside = " with input_image" if inputs["input_image"] else ""
        raise InputError("images", f"are {len(references)} pictures{beside}; {honoured.label} takes at most {most}")
    given_later = ("mask", *REFERENCES) if is_finished_only(inputs) else ("mask",)
    for field in honoured.needs:
        if field not in given_later and not (references if field in REFERENCES else inputs[field]):
            raise InputError(field, f"is needed by {honoured.label}: {MEANT_FOR[field]}")


def is_finished_only(inputs: Mapping[str, Any]) -> bool:
    """Whether the image stays as it is but for details."""
    return bool(inputs["image"]) and inputs["prompt_strength"] == 0


def read_pictures(inputs: Mapping[str, Any], honoured: FamilyInputs) -> dict[str, Any]:
    """``image``, ``original``, ``mask``, ``ad_mask``, ``outpaint``, ``control_image`` and ``references`` of the
    request. Raises :class:`InputError`."""
    given = {name: inputs[name] for name in FILES if inputs[name]}
    original = read_original(given["image"], "image") if "image" in given else None
    mask = read_mask(given["mask"], "mask") if "mask" in given else None
    margins = _margins(inputs, original)
    if "mask" in honoured.needs and mask is None and original and not is_finished_only(inputs):
        mask = _mask_of(given["image"], honoured, needed=margins is None)
    if margins and original:
        if mask and (problem := shape_problem(mask, original.image)):
            raise InputError("mask", problem)
        mask = margins.mask(original.image.size, mask)
        original = margins.extended(original)
    if original and mask and not is_finished_only(inputs):
        original = original.opaque_where(mask)
    return {
        "image": original and original.image,
        "original": original,
        "mask": mask,
        "ad_mask": read_mask(given["ad_mask"], "ad_mask") if "ad_mask" in given else None,
        "outpaint": str(margins or ""),
        "control_image": read_image(given["control_image"], "control_image") if "control_image" in given else None,
        "references": tuple(picture for name in REFERENCES for picture in _read_all(given.get(name), name)),
    }


def check_readable(inputs: Mapping[str, Any]) -> None:
    """Raises :class:`InputError` for a picture that cannot be read, whatever the model takes."""
    for name in FILES:
        for _ in _read_all(inputs[name], name):
            pass


def _read_all(value: object, name: str) -> Iterator[Image.Image]:
    """The pictures that the value of an input is or lists. The error of one in a list says which it is."""
    for number, file in enumerate(files_in(value), 1):
        try:
            yield read_image(file, name)
        except InputError as error:
            raise error.of_item(number) if isinstance(value, list) else error from None


def _margins(inputs: Mapping[str, Any], original: Original | None) -> Margins | None:
    """What the image is extended by. Raises :class:`InputError`."""
    margins = read_margins(inputs["outpaint"])
    if margins is None:
        return None
    if original is None:
        raise InputError("outpaint", "needs an image to extend; give the input 'image' too")
    if inputs["prompt_strength"] == 0:
        raise InputError("outpaint", "paints nothing with a prompt_strength of 0; leave one of them out")
    check_shape(margins.canvas_size(original.image.size), "outpaint")
    return margins


def _mask_of(image: Path, honoured: FamilyInputs, needed: bool) -> Image.Image | None:
    """The transparent parts of the image as a mask; None where it has none. Raises :class:`InputError` where one is
    ``needed``."""
    mask = read_transparency(image, "image")
    if mask.getextrema() != (0, 0):
        return mask
    if needed:
        raise InputError(
            "mask",
            f"is needed by {honoured.label}: {MEANT_FOR['mask']}; give one, or an image with transparent parts",
        )
    return None
