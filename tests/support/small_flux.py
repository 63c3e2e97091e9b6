"""A Flux transformer of a few thousand weights, and one step of it; whole models of every variant around such ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn

from backend.core.settings import ROOT


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


PIPELINES = {
    "dev": "FluxPipeline",
    "fill": "FluxFillPipeline",
    "kontext": "FluxKontextPipeline",
    "canny": "FluxControlPipeline",
    "depth": "FluxControlPipeline",
}
CHANNELS = {"dev": 64, "fill": 384, "kontext": 64, "canny": 128, "depth": 128}
"""Of a token that the transformer takes, as in the published models."""
LIVELY = 3
"""By what attention's weights are multiplied, so that pictures depend on all that it reads."""
EMBEDDED = ROOT / "weights" / "embedded" / "flux"


def write_small_flux(folder: Path, variant: str, native: int = 256) -> Path:
    """A folder in diffusers' layout: the embedded text encoders, and a small random transformer and autoencoder of the
    published channels. What the autoencoder encodes varies by next to nothing, as diffusers samples it."""
    torch.manual_seed(0)
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(EMBEDDED / name, folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    transformer = FluxTransformer2DModel(
        in_channels=CHANNELS[variant],
        out_channels=64,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=192,
        pooled_projection_dim=128,
        axes_dims_rope=(4, 14, 14),
        guidance_embeds=True,
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        latent_channels=16,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **blocks,
    )
    with torch.no_grad():
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            for name, weight in block.named_parameters():
                weight *= LIVELY if weight.ndim == 2 and "attn" in name else 1
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = -30  # the logarithm of the variance
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    index = json.loads((EMBEDDED / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": PIPELINES[variant]}))
    (folder / "family.json").write_text(json.dumps({"name": f"small-{variant}", "native": native, "tokens": 40}))
    return folder
