"""The requests of the set-up after which no request has to wait for kernels to be chosen or code to be compiled."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from PIL import Image

from modules.diffusion.profile import ModelProfile
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest


def warm_up_requests(
    profile: ModelProfile, stages: Collection[str], thorough: bool, reserves: bool
) -> list[ImageRequest]:
    """``thorough``: whatever a request may need of these ``stages``, so that none has to wait for a kernel or for
    compiled code. ``reserves``: a picture of the model's own size, for which the memory was planned. Else a smaller one
    shows that the models work."""
    if thorough:
        return thorough_requests(profile, stages)
    return [first_request(profile, profile.native if reserves else profile.native // 2)]


def first_request(profile: ModelProfile, side: int) -> ImageRequest:
    """One square picture in a single step."""
    return ImageRequest(
        prompt="a", width=side, height=side, seed=0, num_inference_steps=1, **needed_pictures(profile, (side, side))
    )


def needed_pictures(profile: ModelProfile, size: tuple[int, int]) -> dict[str, Any]:
    """The pictures that the model cannot do without: grey ones of this size, all of them to be painted over."""
    grey = Image.new("RGB", size, "grey")
    made: dict[str, tuple[str, object]] = {
        "image": ("image", grey),
        "mask": ("mask", Image.new("L", size, "white")),
        "input_image": ("references", (grey,)),
        "control_image": ("control_image", grey),
    }
    return dict(made[name] for name in profile.inputs.needs)


def thorough_requests(profile: ModelProfile, stages: Collection[str]) -> list[ImageRequest]:
    """What compiled code and a card have to see once, with those of the ``stages`` that the service has: a size that is
    not square, several pictures at once, an image to begin with, a detector, the upscaler, skipped steps.

    None has more pixels than a picture of the model's own size, for which the memory was planned. The first one is not
    square: torch.compile would take two sides that are equal by chance for one.
    """
    side, half = profile.native, profile.native // 2
    single = first_request(profile, side)
    oblong = replace(single, height=side * 3 // 4 // 16 * 16)
    several = replace(
        single,
        height=half,
        num_outputs=2,
        num_inference_steps=2,
        prompt_strength=0.5,
        image=Image.new("RGB", (side, half), "grey") if profile.inputs.image else None,
        mask=Image.new("L", (side, half), "white") if single.mask else None,
        adetailer=(AdetailerUnit(),) if "adetailer" in stages else (),
        scale=2.0 if "upscale" in stages else 1.0,
    )
    skipping = replace(single, num_inference_steps=2, go_fast=True)
    return [oblong, several, single, *([skipping] if profile.inputs.go_fast else [])]
