"""A Flux transformer of a few thousand weights, and one step of it."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import nn


def small_transformer(double_blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 14, 14),
    }
    model: nn.Module = FluxTransformer2DModel(
        in_channels=16, num_layers=double_blocks, num_single_layers=3, guidance_embeds=True, **sizes
    )
    return model.eval().requires_grad_(False)


def forward(transformer: nn.Module) -> torch.Tensor:
    """One step over 8 text and 16 image tokens."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        output: torch.Tensor = transformer(
            hidden_states=torch.randn(1, 16, 16, generator=generator),
            encoder_hidden_states=torch.randn(1, 8, 32, generator=generator),
            pooled_projections=torch.randn(1, 32, generator=generator),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            txt_ids=torch.zeros(8, 3),
            img_ids=torch.ones(16, 3),
            return_dict=False,
        )[0]
    return output
