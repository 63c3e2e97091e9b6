"""The inputs of hosted Flux models: names, defaults and values, as their schemas say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from modules.diffusion.profile import HostDefaults, ModelProfile
from modules.families.flux1.published import DEV, FILL, KONTEXT, SCHNELL, Variant
from modules.families.flux2_klein import FLUX2_KLEIN
from modules.families.flux2_klein.descriptor import HOST

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
    """A hosted model: the profile of the published one, its inputs, and those that every call has."""

    profile: ModelProfile
    inputs: Mapping[str, Hosted]
    always: Mapping[str, Any] = field(default_factory=dict)


def flux1(variant: Variant) -> ModelProfile:
    """The published model of a variant."""
    guided = variant is not SCHNELL
    return ModelProfile(
        name="flux",
        native=1024,
        tokens=variant.tokens,
        latent_factor=8,
        latent_channels=16,
        steps=variant.steps,
        guidance=variant.guidance,
        inputs=variant.inputs if guided else replace(variant.inputs, guidance=None),
        host=HostDefaults(guidance=variant.guidance_of_host),
        strength=variant.strength,
        aspect_ratio=variant.aspect_ratio,
        hosted_as=variant.hosted_as,
    )


def klein(distilled: bool) -> ModelProfile:
    """The published FLUX.2 klein."""
    inputs = replace(FLUX2_KLEIN.inputs, negative_prompt=False, guidance=None) if distilled else FLUX2_KLEIN.inputs
    steps, guidance = (4, 1.0) if distilled else (50, 4.0)
    return ModelProfile("flux2-klein", 1024, 512, 8, 32, steps, guidance, inputs, host=HOST)


KLEIN_INPUTS = {
    **{name: one for name, one in COMMON.items() if name != "num_outputs"},
    "images": Hosted(None, ((), ("picture",), ("picture",) * 5)),
    "aspect_ratio": Hosted("1:1", (*RATIOS, "match_input_image")),
    "output_megapixels": Hosted("1", ("0.25", "0.5", "1", "2", "4")),
    "go_fast": Hosted(False, (False, True)),
    "output_format": Hosted("jpg", ("webp", "jpg", "png")),
    "output_quality": Hosted(95, (0, 100)),
}
MODELS: Mapping[str, Model] = {
    "flux-dev": Model(flux1(DEV), DEV_INPUTS),
    "flux-schnell": Model(
        flux1(SCHNELL), {**COMMON, **SHAPE, "num_inference_steps": Hosted(4, (1, 4)), "go_fast": GO_FAST}
    ),
    "flux-dev-lora": Model(flux1(DEV), {**DEV_INPUTS, **LORAS, **EXTRA, **TOKENS}),
    "flux-fill-dev": Model(
        flux1(FILL),
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
        flux1(KONTEXT),
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
    "a fine-tune of dev": Model(flux1(DEV), {**FINE_TUNE, "model": Hosted("dev", ("dev",))}),
    "a fine-tune of schnell": Model(
        flux1(SCHNELL),
        {
            **{name: one for name, one in FINE_TUNE.items() if name not in ("guidance_scale", "num_inference_steps")},
            "num_inference_steps": Hosted(4, (1, 4)),
            "model": Hosted("schnell", ("schnell",)),
        },
    ),
    "lucataco/flux-dev-lora": Model(
        flux1(DEV),
        {
            **{name: one for name, one in DEV_INPUTS.items() if name not in ("guidance", "go_fast")},
            "guidance_scale": Hosted(3.5, (0.0, 10.0)),
            "hf_lora": Hosted(None, ("alvdansen/frosting_lane_flux", "huggingface.co/alice/ink")),
            "lora_scale": Hosted(0.8, (0.0, 1.0)),
        },
    ),
    "flux-2-klein-4b": Model(klein(distilled=True), KLEIN_INPUTS),
    "flux-2-klein-4b-base": Model(klein(distilled=False), {**KLEIN_INPUTS, "guidance": Hosted(4.0, (1.0, 10.0))}),
}
