"""The pictures that come with a request: which the model takes, and what they are read as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from backend.core.errors import InputError
from modules.diffusion.profile import FamilyInputs
from modules.request.input_image import read_image, read_mask, read_transparency

REFERENCES = ("input_image",)
"""The inputs that give reference pictures, in their order."""
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

    A mask may be missing where the model fills: :func:`read_pictures` looks for transparent parts of the image.
    """
    takes = {"image": honoured.image, "mask": honoured.mask, "control_image": honoured.control}
    takes |= dict.fromkeys(REFERENCES, honoured.references[1] > 0)
    for field, allowed in takes.items():
        if inputs[field] and not allowed:
            others = [name for name in honoured.needs if name not in ("mask", field)]
            instead = f"give '{others[0]}' in its place" if others else "leave it out"
            raise InputError(field, f"is not for {honoured.label}; {instead}")
    for field in honoured.needs:
        if not inputs[field] and field != "mask":
            raise InputError(field, f"is needed by {honoured.label}: {MEANT_FOR[field]}")


def read_pictures(inputs: Mapping[str, Any], honoured: FamilyInputs) -> dict[str, Any]:
    """``image``, ``mask``, ``control_image`` and ``references`` of the request. Raises :class:`InputError`."""
    given = {name: Path(str(inputs[name])) for name in ("image", "mask", "control_image", *REFERENCES) if inputs[name]}
    pictures: dict[str, Any] = {
        name: read(given[name], name) if name in given else None
        for name, read in (("image", read_image), ("mask", read_mask), ("control_image", read_image))
    }
    pictures["references"] = tuple(read_image(given[name], name) for name in REFERENCES if name in given)
    if "mask" in honoured.needs and pictures["mask"] is None:
        pictures["mask"] = _mask_of(given["image"], honoured)
    return pictures


def _mask_of(image: Path, honoured: FamilyInputs) -> Image.Image:
    """The transparent parts of the image as a mask. Raises :class:`InputError` where it has none."""
    mask = read_transparency(image, "image")
    if mask.getextrema() == (0, 0):
        raise InputError(
            "mask",
            f"is needed by {honoured.label}: {MEANT_FOR['mask']}; give one, or an image with transparent parts",
        )
    return mask
