"""The components of an SDXL or SD 1.5 model, from wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from backend.checkpoints.config import Config
from modules.families.autoencoder import load_autoencoder
from modules.families.part_loading import load_diffusers_part, load_text_encoder
from modules.families.parts import Part, PartKind
from modules.families.prompt_tokenizer import load_prompt_tokenizer
from modules.families.scheduler import built_scheduler
from modules.families.source import Source
from modules.families.stable_diffusion.single_file import open_clip_names, unet_names
from modules.families.text_encoders import CLIP_G_TOKENIZERS, CLIP_TOKENIZERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZERS = (
    ("tokenizer", "text_encoder", CLIP_TOKENIZERS),
    ("tokenizer_2", "text_encoder_2", CLIP_G_TOKENIZERS),
)


def load_component(part: Part, component: str, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    if component == "vae":
        return load_autoencoder(part, dtype)
    if component == "unet":
        return load_diffusers_part(UNet2DConditionModel, part, dtype, unet_names)
    if component == "text_encoder":
        return load_text_encoder(CLIPTextModel, part, dtype)
    return load_text_encoder(CLIPTextModelWithProjection, part, dtype, open_clip_names)


def load_tokenizers(source: Source, parts: Mapping[str, PartKind]) -> tuple[PreTrainedTokenizerBase, ...]:
    found = [(name, source.part(encoder, parts), shelf) for name, encoder, shelf in TOKENIZERS if encoder in parts]
    return tuple(
        load_prompt_tokenizer(CLIPTokenizer, source.tokenizer(name, part, shelf), part.config)
        for name, part, shelf in found
    )


def checked_scheduler(config: Config) -> Config:
    """The configuration, after Euler's scheduler has placed steps with it."""
    built_scheduler(EulerDiscreteScheduler, config, num_inference_steps=2)
    return config
