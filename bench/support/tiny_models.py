"""Tiny SDXL and SD 1.5 models: classes of diffusers with random weights, always the same."""

from __future__ import annotations

from pathlib import Path

import torch

from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports diffusers

import diffusers  # noqa: E402
import transformers  # noqa: E402

WORDS = Path(__file__).resolve().parents[2] / "weights" / "embedded" / "flux" / "tokenizer"
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
UNET = {"sample_size": 32, "layers_per_block": 1, "norm_num_groups": 8}
XL_UNET = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 64,  # both text encoders side by side
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
SD15_UNET = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 4, "cross_attention_dim": 32}
CLIP = {"hidden_size": 32, "projection_dim": 32, "intermediate_size": 64, "num_hidden_layers": 3}


def write_tiny_model(folder: Path, family: str) -> None:
    """An "sdxl" or "sd15" in diffusers' layout; its native size is 256."""
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(WORDS, model_max_length=77, trust_remote_code=False)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    clip = transformers.CLIPTextConfig(**CLIP, **ends, vocab_size=len(tokenizer), num_attention_heads=2)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": transformers.CLIPTextModel(clip),
        "unet": diffusers.UNet2DConditionModel(**UNET, **(XL_UNET if family == "sdxl" else SD15_UNET)),
        "vae": diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, block_out_channels=(32, 32, 64, 64)),
    }
    if family == "sdxl":
        second = {"tokenizer_2": tokenizer, "text_encoder_2": transformers.CLIPTextModelWithProjection(clip)}
        scheduler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, **second, scheduler=scheduler)
    else:
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        scheduler = diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True)
        pipeline = diffusers.StableDiffusionPipeline(**parts, **unused, scheduler=scheduler)
    pipeline.save_pretrained(folder)
