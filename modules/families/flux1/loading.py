"""The components of a FLUX.1 model, from its folder, and the transformer from a single file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from backend.checkpoints.build_budget import building
from backend.checkpoints.loader import assign_tensors, load_diffusers_module, load_transformers_module, read_tensors
from modules.families.autoencoder import autoencoder_precision
from modules.families.flux1.single_file import in_diffusers_layout, transformer_config
from modules.families.prompt_tokenizer import load_prompt_tokenizer
from modules.families.scheduler import load_scheduler as read_scheduler
from modules.families.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
}


def load_component(source: Source, component: str, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    if component == "transformer" and source.file:
        tensors = in_diffusers_layout(read_tensors([source.file], dtype))
        with building(source.label, [source.file], len(tensors)), torch.device("meta"):
            transformer: nn.Module = FluxTransformer2DModel(**transformer_config(tensors))
        assign_tensors(transformer, tensors, source.label)
        return transformer
    if component == "vae":
        dtype = autoencoder_precision(source.config("vae"), dtype)
    load = load_transformers_module if component.startswith("text_encoder") else load_diffusers_module
    return load(CLASSES[component], source.folder / component, dtype)


def load_tokenizers(source: Source) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """CLIP's and T5's."""
    return (
        load_prompt_tokenizer(CLIPTokenizer, source.folder / "tokenizer", source.config("text_encoder")),
        load_prompt_tokenizer(T5TokenizerFast, source.folder / "tokenizer_2", source.config("text_encoder_2")),
    )


def load_scheduler(source: Source) -> FlowMatchEulerDiscreteScheduler:
    scheduler: FlowMatchEulerDiscreteScheduler = read_scheduler(
        FlowMatchEulerDiscreteScheduler, source.folder / "scheduler", sigmas=[1.0, 0.5], mu=0.5
    )
    return scheduler
