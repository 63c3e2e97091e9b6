"""The components of a FLUX.1 model, and what the published ones are like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from modules.families.autoencoder import autoencoder_kind
from modules.families.parts import PartKind
from modules.families.text_encoders import CLIP_L, T5_XXL

PARTS: Mapping[str, PartKind] = MappingProxyType(
    {
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "transformer": PartKind(
            "a Flux transformer",
            ("double_blocks.0.img_mod.lin.weight", "transformer_blocks.0.norm1.linear.weight"),
            published={"_class_name": "FluxTransformer2DModel"},  # the rest follows from its tensors
        ),
        "vae": autoencoder_kind(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            force_upcast=True,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=1024,
        ),
    }
)
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


@dataclass(frozen=True)
class Variant:
    """What the published variants differ in, beside their transformers."""

    tokens: int
    steps: int
    scheduler: Mapping[str, Any]


DEV = Variant(512, 28, MappingProxyType({**_FLOW, "shift": 3.0, "use_dynamic_shifting": True}))
SCHNELL = Variant(256, 4, MappingProxyType({**_FLOW, "shift": 1.0, "use_dynamic_shifting": False}))
