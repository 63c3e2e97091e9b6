"""The components of a FLUX.2 klein model, and what the published ones are like."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modules.families.autoencoder import autoencoder_kind
from modules.families.parts import PartKind
from modules.families.qwen3 import QWEN3_4B

PARTS: Mapping[str, PartKind] = MappingProxyType(
    {
        "text_encoder": QWEN3_4B,
        "transformer": PartKind(
            "a FLUX.2 transformer",
            ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"),
            published={"_class_name": "Flux2Transformer2DModel"},  # the rest follows from its tensors
        ),
        "vae": autoencoder_kind(
            _class_name="AutoencoderKLFlux2",
            latent_channels=32,
            batch_norm_eps=1e-4,
            force_upcast=True,
            use_quant_conv=True,
            use_post_quant_conv=True,
            sample_size=1024,
        ),
    }
)
FLOW: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    }
)
"""The published scheduler. How far sizes move the noise levels is not in it, but in the pipeline."""
TEXT_LAYERS = (9, 18, 27)
"""The text encoder's layers whose outputs stand side by side in a token's embedding (``Flux2KleinPipeline``)."""
MOST_REFERENCES = 5
"""As many as hosts take; diffusers' pipeline has no limit."""
PATCH = 2
"""Latents a side of one token."""
