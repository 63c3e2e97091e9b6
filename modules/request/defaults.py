"""What a request gets that leaves inputs out, by the setting ``profile``: "studio" finishes every picture, "hosted"
does what hosted Flux does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError
from modules.diffusion.profile import ModelProfile


@dataclass(frozen=True)
class Defaults:
    """``guidance_of_host``: where the model has one, the guidance scale that hosts use, in place of its own."""

    adetailer: bool = True
    scale: float = 2.0
    go_fast: bool = False
    guidance_of_host: bool = False

    def filled(self, inputs: Mapping[str, Any], profile: ModelProfile) -> dict[str, Any]:
        """The inputs with those filled in that are None, and one name for the guidance scale.

        Raises :class:`InputError` for two guidance scales.
        """
        given = dict(inputs)
        guidance = given.pop("guidance", None)
        if given["guidance_scale"] is None:
            given["guidance_scale"] = guidance
        elif guidance not in (None, given["guidance_scale"]):
            raise InputError(
                "guidance", f"is {guidance:g}, and guidance_scale is {given['guidance_scale']:g}; give one"
            )
        host = profile.guidance_of_host if self.guidance_of_host else None
        honours = profile.inputs.go_fast and not given["image"]  # as on hosts, which draw from an image without it
        left_out = {
            "adetailer": self.adetailer,
            "scale": self.scale,
            "go_fast": self.go_fast and honours,
            "num_inference_steps": profile.steps,
            "guidance_scale": profile.guidance if host is None else host,
            "prompt_strength": profile.strength,
            "aspect_ratio": profile.aspect_ratio,
        }
        return given | {name: value for name, value in left_out.items() if given[name] is None}


STUDIO = Defaults()
DEFAULTS: Mapping[str, Defaults] = MappingProxyType(
    {"studio": STUDIO, "hosted": Defaults(adetailer=False, scale=1.0, go_fast=True, guidance_of_host=True)}
)
"""By the setting ``profile``."""
