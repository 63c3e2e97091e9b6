"""Inputs that count only beside others: a line for each that was given, and that nothing reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules.diffusion.profile import ModelProfile
from modules.request.defaults import Defaults
from modules.request.image_request import HIRES_INPUTS, Hires, ImageRequest

LATENT_STRENGTH = 0.6
"""Below it a pass over latents that were resized keeps their blocks and doubled edges."""
DETAIL_INPUTS = ("ad_prompt", "ad_hands_prompt", "adetailer_args", "adetailer_args_hands")


def without_effect(
    given: Mapping[str, Any], filled: Mapping[str, Any], profile: ModelProfile, defaults: Defaults
) -> list[str]:
    """The notices of a request. ``given`` has None where an input was left out, ``filled`` what is meant by that. A
    value that is the default is not told, because many clients send all of them."""
    upscaled = filled["scale"] > 1 or (filled["enable_hr"] and filled["hr_upscaler"] == "ESRGAN")
    masked = filled["mask"] or filled["outpaint"]
    # by the input that nothing reads: what it needs, and its values that ask for nothing
    unread: dict[str, tuple[str, tuple[object, ...]]] = {}
    if not filled["enable_hr"]:
        usual = Hires()
        unread |= {name: ("enable_hr", (getattr(usual, field),)) for field, name in HIRES_INPUTS.items()}
    if not filled["adetailer"]:
        unread |= dict.fromkeys(DETAIL_INPUTS, ("adetailer", ("",)))
    if not filled["image"]:
        unread["prompt_strength"] = "image", (None, profile.strength)
    if not masked:
        unread["inpaint_only_masked"] = "mask", (None, defaults.inpaint_only_masked)
        unread["inpaint_only_masked_padding"] = "mask", (ImageRequest.inpaint_only_masked_padding,)
    if not filled["prompt_upsampling"]:
        unread["prompt_upsampling_seed"] = "prompt_upsampling", (None,)
    if not upscaled:
        unread["upscaler"] = "a scale above 1", ("",)
    return [
        f"{name}: has no effect without {needed}" for name, (needed, idle) in unread.items() if given[name] not in idle
    ]


def latent_notices(hires: Hires | None) -> list[str]:
    """A line where Hires fix resizes latents and repaints too little of what comes of it."""
    if not hires or not hires.upscaler.startswith("Latent") or hires.strength >= LATENT_STRENGTH:
        return []
    return [
        f"denoising_strength: {hires.strength:g} leaves blocks and doubled edges with the hr_upscaler "
        f"{hires.upscaler}; give at least {LATENT_STRENGTH:g}, or another upscaler"
    ]
