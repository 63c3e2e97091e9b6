"""The components of a FLUX.1 model, and what the published ones are like."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

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
