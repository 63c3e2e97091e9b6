"""The inputs of hosted Flux models: names, defaults and values, as their schemas say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from modules.families.flux1.published import DEV, FILL, KONTEXT, SCHNELL, Variant

RATIOS = ("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21")
REQUIRED = object()
"""The default of an input that must be given."""


@dataclass(frozen=True)
class Hosted:
    """One input of a hosted model: its default, and its values: a range, choices, or examples."""

    default: Any = None
    values: tuple[Any, ...] = ()


COMMON: Mapping[str, Hosted] = MappingProxyType(
    {
        "prompt": Hosted(REQUIRED, ("a fox",)),
        "seed": Hosted(None, (0, 42, 2**32 - 1)),
        "num_outputs": Hosted(1, (1, 4)),
        "output_format": Hosted("webp", ("webp", "jpg", "png")),
        "output_quality": Hosted(80, (0, 100)),
        "disable_safety_checker": Hosted(False, (False, True)),
    }
)
SHAPE = {"aspect_ratio": Hosted("1:1", RATIOS), "megapixels": Hosted("1", ("1", "0.25"))}
STEPS, GO_FAST = Hosted(28, (1, 50)), Hosted(True, (True, False))
DEV_INPUTS = {
    **COMMON,
    **SHAPE,
    "image": Hosted(None, ("picture",)),
    "prompt_strength": Hosted(0.8, (0.0, 1.0)),
    "num_inference_steps": STEPS,
    "guidance": Hosted(3.0, (0.0, 10.0)),
    "go_fast": GO_FAST,
}
LORA_OF_HUB = "huggingface.co/alice/ink"
LORA = "https://loras.example/ink.safetensors"
LORAS = {
    "lora_weights": Hosted(None, (LORA, "fofr/flux-pixar-cars", "huggingface.co/alice/ink", "civitai.com/models/12")),
    "lora_scale": Hosted(1.0, (-1.0, 3.0)),
}
EXTRA = {
    "extra_lora": Hosted(None, ("bob/oil", "https://replicate.delivery/x/trained_model.tar")),
    "extra_lora_scale": Hosted(1.0, (-1.0, 3.0)),
}
TOKENS = dict.fromkeys(("hf_api_token", "civitai_api_token"), Hosted(None, ("hf_for-this-test",)))
FINE_TUNE = {
    **COMMON,
    **SHAPE,
    **EXTRA,
    "aspect_ratio": Hosted("1:1", (*RATIOS, "custom")),
    "width": Hosted(None, (256, 500, 1440)),
    "height": Hosted(None, (256, 500, 1440)),
    "num_inference_steps": STEPS,
    "prompt_strength": Hosted(0.8, (0.0, 1.0)),
    "image": Hosted(None, ("picture",)),
    "mask": Hosted(None, ("mask",)),
    "go_fast": GO_FAST,
    "guidance_scale": Hosted(3.0, (0.0, 10.0)),
    "replicate_weights": Hosted(None, ("bob/oil", "https://replicate.delivery/x/trained_model.tar")),
    "lora_scale": Hosted(1.0, (-1.0, 3.0)),
}


@dataclass(frozen=True)
class Model:
    """A hosted model: which variant of FLUX.1 it is, its inputs, and those that every call has."""

    variant: Variant
    inputs: Mapping[str, Hosted]
    always: Mapping[str, Any] = field(default_factory=dict)


MODELS: Mapping[str, Model] = {
    "flux-dev": Model(DEV, DEV_INPUTS),
    "flux-schnell": Model(SCHNELL, {**COMMON, **SHAPE, "num_inference_steps": Hosted(4, (1, 4)), "go_fast": GO_FAST}),
    "flux-dev-lora": Model(DEV, {**DEV_INPUTS, **LORAS, **EXTRA, **TOKENS}),
    "flux-fill-dev": Model(
        FILL,
        {
            **COMMON,
            **LORAS,
            "image": Hosted(REQUIRED, ("picture",)),
            "mask": Hosted(None, ("mask",)),
            "megapixels": Hosted("1", ("1", "0.25", "match_input")),
            "num_inference_steps": STEPS,
            "guidance": Hosted(30.0, (0.0, 100.0)),
        },
        {"image": "picture", "mask": "mask"},
    ),
    "flux-kontext-dev": Model(
        KONTEXT,
        {
            **{name: one for name, one in COMMON.items() if name != "num_outputs"},
            "input_image": Hosted(REQUIRED, ("picture",)),
            "aspect_ratio": Hosted("match_input_image", (*RATIOS, "match_input_image")),
            "num_inference_steps": Hosted(28, (4, 50)),
            "guidance": Hosted(2.5, (0.0, 10.0)),
            "go_fast": GO_FAST,
        },
        {"input_image": "picture"},
    ),
    "a fine-tune of dev": Model(DEV, {**FINE_TUNE, "model": Hosted("dev", ("dev",))}),
    "a fine-tune of schnell": Model(
        SCHNELL,
        {
            **{name: one for name, one in FINE_TUNE.items() if name not in ("guidance_scale", "num_inference_steps")},
            "num_inference_steps": Hosted(4, (1, 4)),
            "model": Hosted("schnell", ("schnell",)),
        },
    ),
    "lucataco/flux-dev-lora": Model(
        DEV,
        {
            **{name: one for name, one in DEV_INPUTS.items() if name not in ("guidance", "go_fast")},
            "guidance_scale": Hosted(3.5, (0.0, 10.0)),
            "hf_lora": Hosted(None, ("alvdansen/frosting_lane_flux", "huggingface.co/alice/ink")),
            "lora_scale": Hosted(0.8, (0.0, 1.0)),
        },
    ),
}
