"""The published variants of FLUX.1: what they differ in, beside their transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from modules.diffusion.canvas import ASPECT_RATIOS
from modules.diffusion.profile import FamilyInputs

_FLOW: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    }
)
_SHIFTED: Mapping[str, Any] = MappingProxyType({**_FLOW, "shift": 3.0, "use_dynamic_shifting": True})
_UNSHIFTED: Mapping[str, Any] = MappingProxyType({**_FLOW, "shift": 1.0, "use_dynamic_shifting": False})

KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688),
    (1568, 672),
)  # fmt: skip
"""Width and height of the pictures that Kontext was trained on (``PREFERRED_KONTEXT_RESOLUTIONS`` of diffusers)."""
KONTEXT_RATIOS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "1:1": (1024, 1024),
        "16:9": (1328, 800),
        "21:9": (1568, 672),
        "3:2": (1248, 832),
        "2:3": (832, 1248),
        "4:5": (944, 1104),
        "5:4": (1104, 944),
        "3:4": (880, 1184),
        "4:3": (1184, 880),
        "9:16": (800, 1328),
        "9:21": (672, 1568),
    }
)
"""Those that hosts of Kontext give for an aspect ratio."""
FILL_MULTIPLE = 32
"""Hosts of Fill, Canny and Depth round the sides of the given picture down to multiples of this."""


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        tokens: Length of its prompts.
        steps, guidance, strength, aspect_ratio, guidance_of_host, hosted_as: As in
            :class:`modules.diffusion.profile.ModelProfile`.
        inputs: What it honours.
        scheduler: The configuration of its scheduler.
        edges: Whether it reads the edges of its control image.
    """

    tokens: int = 512
    steps: int = 28
    inputs: FamilyInputs = FamilyInputs(label="Flux", go_fast=True)
    scheduler: Mapping[str, Any] = field(default_factory=lambda: _SHIFTED)
    guidance: float = 3.5
    guidance_of_host: float | None = None
    hosted_as: str = ""
    strength: float = 0.8
    aspect_ratio: str = "1:1"
    edges: bool = False


def _control(label: str) -> FamilyInputs:
    return FamilyInputs(
        label=label,
        guidance=(0, 100),
        needs=("control_image",),
        control=True,
        go_fast=True,
        after_image=FILL_MULTIPLE,
    )


DEV = Variant(guidance_of_host=3.0, hosted_as="dev")
SCHNELL = Variant(tokens=256, steps=4, scheduler=_UNSHIFTED, hosted_as="schnell")
FILL = Variant(
    inputs=FamilyInputs(
        label="FLUX.1 Fill",
        guidance=(0, 100),
        needs=("image", "mask"),
        fills=True,
        go_fast=True,
        after_image=FILL_MULTIPLE,
    ),
    guidance=30.0,
    strength=1.0,
)
KONTEXT = Variant(
    inputs=FamilyInputs(
        label="FLUX.1 Kontext",
        needs=("input_image",),
        references=(1, 1),
        go_fast=True,
        aspect_ratios={name: KONTEXT_RATIOS[name] for name in ASPECT_RATIOS},
        preferred_sizes=KONTEXT_SIZES,
    ),
    guidance=2.5,
    aspect_ratio="match_input_image",
)
CANNY = Variant(inputs=_control("FLUX.1 Canny"), guidance=30.0, edges=True)
DEPTH = Variant(inputs=_control("FLUX.1 Depth"), guidance=10.0)
