"""A Z-Image of a few thousand random weights, in a folder as diffusers saves it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from support.small_qwen3 import WIDTH, write_qwen3

INDEX = {
    "_class_name": "ZImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_z_image(folder: Path, turbo: bool = True) -> Path:
    """Turbo, or the base model."""
    write_qwen3(folder, layers=4)
    torch.manual_seed(2)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=48,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 8, 8],
        axes_lens=[1024, 64, 64],
    )
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:
            torch.nn.init.normal_(parameter)
    transformer.save_pretrained(folder / "transformer")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    vae.save_pretrained(folder / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if turbo else 6.0, use_dynamic_shifting=False)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder
