"""What a request gets that leaves inputs out, by the setting ``profile``: "studio" finishes every picture, "hosted"
does what hosted Flux does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from PIL import Image

from backend.core.errors import InputError
from modules.diffusion.canvas import MOST_MATCHED, Canvas
from modules.diffusion.profile import HostDefaults, ModelProfile

OURS = HostDefaults(go_fast=False)
"""Where the profile is not that of hosts."""
OTHER_NAMES: Mapping[str, str] = MappingProxyType({"guidance": "guidance_scale", "output_megapixels": "megapixels"})
"""What hosts call inputs otherwise."""


@dataclass(frozen=True)
class Defaults:
    """``of_host``: guidance scale, ``go_fast``, format and quality are those of the model's hosts. ``rounds_sizes``:
    width and height become the nearest sizes that the model draws, where others are refused. ``size_of_image``: a
    picture that starts from an image has its size, and not only its shape. ``inpaint_only_masked``: what a mask leaves
    keeps the size and the pixels of the image."""

    adetailer: bool = True
    scale: float = 2.0
    of_host: bool = False
    rounds_sizes: bool = False
    size_of_image: bool = False
    inpaint_only_masked: bool = True

    def size_from(self, image: Image.Image | None, megapixels: str, profile: ModelProfile) -> tuple[int, int] | None:
        """Width and height of a picture that starts from ``image`` (scaled down to at most 1440 pixels a side, as hosts
        do it); None where other inputs decide."""
        if image is None or not self.size_of_image or megapixels != "1" or "image" in profile.inputs.needs:
            return None
        scale = min(1.0, MOST_MATCHED / max(image.size))
        return profile.canvas.fitted(int(image.width * scale), int(image.height * scale))

    def on_the_grid(self, inputs: Mapping[str, Any], canvas: Canvas) -> tuple[dict[str, Any], list[str]]:
        """The inputs with a width and a height that the model draws, and a line where they are others than given."""
        given = {side: inputs[side] for side in ("width", "height") if inputs[side] is not None}
        if not self.rounds_sizes or inputs["aspect_ratio"] != "custom":
            return dict(inputs), []
        drawn = {side: canvas.fitted(pixels, pixels)[0] for side, pixels in given.items()}
        changed = [f"{side}: {given[side]} is no size of this model, {drawn[side]} is drawn" for side in given]
        return dict(inputs) | drawn, [line for side, line in zip(given, changed) if drawn[side] != given[side]]

    def filled(self, inputs: Mapping[str, Any], profile: ModelProfile) -> dict[str, Any]:
        """The inputs with those filled in that are None, and one name for those that have two.

        Raises :class:`InputError` for two values of one input.
        """
        given = _with_one_name(inputs)
        host = profile.host if self.of_host else OURS
        # the host that has the input hf_lora takes the model's own guidance scale
        guidance = None if given.get("hf_lora") else host.guidance
        honours = profile.inputs.go_fast and not given["image"]  # as on hosts, which draw from an image without it
        left_out = {
            "adetailer": self.adetailer,
            "scale": self.scale,
            "go_fast": host.go_fast and honours,
            "num_inference_steps": profile.steps,
            "guidance_scale": profile.guidance if guidance is None else guidance,
            "prompt_strength": 1.0 if given["outpaint"] else profile.strength,
            "inpaint_only_masked": self.inpaint_only_masked or bool(given["outpaint"]),
            "aspect_ratio": profile.aspect_ratio,
            "megapixels": "1",
            "output_format": host.output_format,
            "output_quality": host.output_quality,
        }
        return given | {name: value for name, value in left_out.items() if given[name] is None}


def _with_one_name(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs without their other names. Raises :class:`InputError` where both are given, and differ."""
    given = dict(inputs)
    for other, name in OTHER_NAMES.items():
        value = given.pop(other, None)
        if given[name] is None:
            given[name] = value
        elif value not in (None, given[name]):
            raise InputError(other, f"is {_shown(value)}, and {name} is {_shown(given[name])}; give one")
    return given


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


STUDIO = Defaults()
DEFAULTS: Mapping[str, Defaults] = MappingProxyType(
    {
        "studio": STUDIO,
        "hosted": Defaults(
            adetailer=False, scale=1.0, of_host=True, rounds_sizes=True, size_of_image=True, inpaint_only_masked=False
        ),
    }
)
"""By the setting ``profile``."""
