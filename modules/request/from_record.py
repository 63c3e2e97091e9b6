"""The record that this package writes into its pictures, as the inputs that give the same picture again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modules.request.adetailer_args import PREFIX
from modules.request.adetailer_unit import FACES
from modules.request.image_request import HIRES_INPUTS, MAX_SEED
from modules.request.infotext import Filled
from modules.request.loras import EXTRA, MAIN
from modules.request.sizes import CUSTOM

PICTURES = {
    "image": "image",
    "mask": "mask",
    "ad_mask": "ad_mask",
    "references": "input_image",
    "control_image": "control_image",
}
"""The input of every field of the request that holds pictures."""
OWN = (*PICTURES.values(), "images", "width", "height", "adetailer", "prompt_upsampling")
"""Inputs that are not taken as they stand in the record."""


def inputs_of_record(record: Mapping[str, Any], names: Mapping[str, Any]) -> Filled:
    """The inputs of the picture that the record lies in and of those that were made with it; ``names`` are those of all
    inputs.

    A prompt that a language model has written is taken as it is. Pictures that the request began from are not in the
    file, which the notices say. Raises ``ValueError`` for a record of another kind.
    """
    request = record.get("request")
    if not isinstance(request, Mapping) or "prompt" not in request or not isinstance(record.get("seed"), int):
        raise ValueError("the record in the file is not one of this version")
    inputs = {name: value for name, value in request.items() if name in names and name not in OWN}
    picture = _picture(record["seed"], request)
    if picture is None:
        inputs |= {"seed": record["seed"], "num_outputs": 1}
    inputs.pop("prompt_upsampling_seed", None)
    if request.get("aspect_ratio", CUSTOM) == CUSTOM and not request.get("image"):
        inputs |= {"aspect_ratio": CUSTOM, "width": request.get("width"), "height": request.get("height")}
    hires = request.get("hires")
    inputs["enable_hr"] = hires is not None
    inputs |= {HIRES_INPUTS[name]: value for name, value in (hires or {}).items() if name in HIRES_INPUTS}
    inputs |= _loras(request.get("loras") or ())
    units = [_changed(unit) for unit in request.get("adetailer") or ()]
    inputs |= {"adetailer": bool(units)} | ({"adetailer_args": json.dumps(units)} if units else {})
    notices = [
        _told(name, request[field])
        for field, name in PICTURES.items()
        if request.get(field) and not (name == "mask" and request.get("outpaint"))
    ]
    if request.get("outpaint"):  # which makes a mask of its own
        notices.append("mask: if the picture was made with one beside outpaint, give it as mask=@FILE")
    return Filled(inputs, notices, picture)


def _told(name: str, pictures: object) -> str:
    """That pictures are not in the file, of which the record has the sizes."""
    if isinstance(pictures, list) and len(pictures) > 1:
        return (
            f"images: the picture was made from {len(pictures)} others, which are not in the file; give each as "
            "images=@FILE, in their order"
        )
    return f"{name}: the picture was made from another one, which is not in the file; give it as {name}=@FILE"


def _loras(uses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The inputs of the LoRA that the prompt does not name."""
    names = {MAIN: "lora_scale", EXTRA: "extra_lora_scale"}
    inputs: dict[str, Any] = {}
    for use in uses:
        if use["input_name"] != "prompt":
            name = EXTRA if use["input_name"] == EXTRA else MAIN
            inputs |= {name: use["reference"], names[name]: use["scale"]}
    return inputs


def _picture(seed: int, request: Mapping[str, Any]) -> int | None:
    """Which picture of the request has this seed; None where the request made no other."""
    first, number = request.get("seed"), request.get("num_outputs")
    if not isinstance(first, int) or not isinstance(number, int) or number < 2:
        return None
    picture = (seed - first) % (MAX_SEED + 1)
    return picture if picture < number else None


def _changed(unit: Mapping[str, Any]) -> dict[str, Any]:
    """What a unit has that is not the default, by ADetailer's names."""
    return {PREFIX + name: value for name, value in unit.items() if value != getattr(FACES, name, None)}
