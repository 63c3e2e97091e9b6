"""The components of a Z-Image model, and what the published ones are like."""

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
            "a Z-Image transformer",
            ("x_pad_token",),
            {"dim": 1},
            {
                "_class_name": "ZImageTransformer2DModel",
                "all_f_patch_size": [1],
                "all_patch_size": [2],
                "axes_dims": [32, 48, 48],
                "axes_lens": [1536, 512, 512],
                "cap_feat_dim": 2560,
                "dim": 3840,
                "in_channels": 16,
                "n_heads": 30,
                "n_kv_heads": 30,
                "n_layers": 30,
                "n_refiner_layers": 2,
                "norm_eps": 1e-5,
                "qk_norm": True,
                "rope_theta": 256.0,
                "t_scale": 1000.0,
            },
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
TURBO_SHIFT, BASE_SHIFT = 3.0, 6.0
"""How far the published schedulers move the noise levels to the noisy side; the configuration by which Turbo and the
base model are told apart."""


def flow(shift: float) -> Mapping[str, Any]:
    """The published scheduler."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift,
        "use_dynamic_shifting": False,
    }


PATCH = 2
"""Latents a side of one token."""
