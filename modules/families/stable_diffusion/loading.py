"""The components of an SDXL or SD 1.5 model, from its folder or from a single file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from backend.checkpoints.config import Config
from backend.checkpoints.loader import load_diffusers_module, load_transformers_module
from modules.families.autoencoder import autoencoder_precision
from modules.families.prompt_tokenizer import load_prompt_tokenizer
from modules.families.scheduler import load_scheduler, scheduler_config
from modules.families.source import Source
from modules.families.stable_diffusion.single_file import load_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


def load_component(source: Source, component: str, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    if component == "vae":
        dtype = autoencoder_precision(source.config("vae"), dtype)
    kind, folder = CLASSES[component], source.folder / component
    if source.file:
        return load_part(source.file, component, kind, folder, dtype)
    load = load_transformers_module if component.startswith("text_encoder") else load_diffusers_module
    return load(kind, folder, dtype)


def load_tokenizers(source: Source, count: int) -> tuple[PreTrainedTokenizerBase, ...]:
    names = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))[:count]
    return tuple(
        load_prompt_tokenizer(CLIPTokenizer, source.folder / name, source.config(encoder)) for name, encoder in names
    )


def checked_scheduler(source: Source) -> Config:
    """The configuration of the model's scheduler, after Euler's has placed steps with it."""
    folder = source.folder / "scheduler"
    load_scheduler(EulerDiscreteScheduler, folder, num_inference_steps=2)
    return scheduler_config(folder)
