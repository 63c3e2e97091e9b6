"""The sizes and costs of the published SDXL and SD 1.5, for plans without their files. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from backend.planning.model_specs import Component, Cost, Curve, ModelSpec
from modules.families.autoencoder_costs import PUBLISHED_AUTOENCODER
from modules.families.stable_diffusion.spec import COSTS_SOURCE, LABELS, prompt_bytes

# fmt: off
_SDXL_BLOCKS = (
    2255040, 2255040, 921920, 6558080, 20832000, 8196480, 20832000, 3687040, 24584960, 350840320, 31138560,
    350840320, 31138560, 350840320, 31138560, 49164800, 350840320, 49164800, 350840320, 40971520, 350840320,
    14746880, 16801280, 20832000, 12704000, 20832000, 10655360, 20832000, 3687040, 4407040, 3382400, 3382400,
)
_SD15_BLOCKS = (
    2255040, 2546240, 2255040, 2546240, 921920, 6558080, 9188480, 8196480, 9188480, 3687040, 24584960,
    34760960, 31138560, 34760960, 14746880, 31138560, 31138560, 31138560, 34760960, 31138560, 49164800,
    49164800, 49164800, 14746880, 49164800, 34760960, 49164800, 34760960, 40971520, 34760960, 14746880,
    16801280, 9188480, 12704000, 9188480, 10655360, 9188480, 3687040, 4407040, 2546240, 3382400, 2546240,
    3382400, 2546240,
)
# fmt: on
"""The parts of a UNet's blocks that are streamed, in the order in which they run."""

_CLIP_L = Component(123_060_480)
_AUTOENCODER = Component(83_653_863)

_SDXL = ModelSpec(
    name="sdxl",
    native=1024,
    steps=30,
    components=MappingProxyType(
        {
            "text_encoder": _CLIP_L,
            "text_encoder_2": Component(694_659_840),
            "unet": Component(2_567_463_684, "bf16", _SDXL_BLOCKS, 1050, 29_492_480, rounds=False),
            "vae": _AUTOENCODER,
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=125e3), Curve(linear=2 * 2 * 817_720_320)),
            "denoise": Cost(Curve(linear=20.1e3), Curve(49.06e9, 726.9e6, 5600)),
            **PUBLISHED_AUTOENCODER,
        }
    ),
    costs_source=COSTS_SOURCE,
    token_pixels=8,
    text_tokens=77,
    prompt_bytes=prompt_bytes((768, 1280), 77, "bf16"),
    denoiser="unet",
    labels=LABELS,
)
_SD15 = replace(
    _SDXL,
    name="sd15",
    native=512,
    components=MappingProxyType(
        {
            "text_encoder": _CLIP_L,
            "unet": Component(859_520_964, "bf16", _SD15_BLOCKS, 391, 29_492_480, rounds=False),
            "vae": _AUTOENCODER,
        }
    ),
    costs=MappingProxyType(
        {
            "encode": Cost(Curve(linear=25e3), Curve(linear=2 * 2 * 123_060_480)),
            "denoise": Cost(Curve(linear=33e3), Curve(-19.41e9, 329.03e6, 14_602.5)),
            **PUBLISHED_AUTOENCODER,
        }
    ),
    encoders=("text_encoder",),
    prompt_bytes=prompt_bytes((768,), 77, "bf16"),
)
KNOWN_SDXL: Mapping[str, ModelSpec] = MappingProxyType({"sdxl": _SDXL})
KNOWN_SD15: Mapping[str, ModelSpec] = MappingProxyType({"sd15": _SD15})
