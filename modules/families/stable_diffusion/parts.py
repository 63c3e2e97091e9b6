"""The components of SDXL and SD 1.5, and what the published ones are like."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modules.families.autoencoder import autoencoder_kind
from modules.families.parts import PartKind
from modules.families.text_encoders import CLIP_G, CLIP_L

UNET_MARKS = ("input_blocks.0.0.weight", "time_embedding.linear_1.weight")
_UNET: Mapping[str, Any] = MappingProxyType(
    {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 2}
)
_XL_UNET: Mapping[str, Any] = MappingProxyType(
    {
        **_UNET,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
)
_SD15_UNET: Mapping[str, Any] = MappingProxyType(
    {
        **_UNET,
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    }
)
SDXL_PARTS: Mapping[str, PartKind] = MappingProxyType(
    {
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "unet": PartKind("an SDXL UNet", UNET_MARKS, published=_XL_UNET),
        "vae": autoencoder_kind(latent_channels=4, scaling_factor=0.13025, force_upcast=True, sample_size=1024),
    }
)
SD15_PARTS: Mapping[str, PartKind] = MappingProxyType(
    {
        "text_encoder": CLIP_L,
        "unet": PartKind("an SD 1.5 UNet", UNET_MARKS, published=_SD15_UNET),
        "vae": autoencoder_kind(latent_channels=4, scaling_factor=0.18215, sample_size=512),
    }
)
_NOISE: Mapping[str, Any] = MappingProxyType(
    {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
)
SDXL_NOISE: Mapping[str, Any] = MappingProxyType({**_NOISE, "timestep_spacing": "leading"})
SD15_NOISE: Mapping[str, Any] = _NOISE
"""The published schedulers, as Euler's reads them."""
