"""The components of a FLUX.1 model, from wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from backend.checkpoints.build_budget import building
from backend.checkpoints.loader import assign_tensors, load_diffusers_module
from modules.families.autoencoder import load_autoencoder
from modules.families.flux1.parts import PARTS
from modules.families.flux1.single_file import in_diffusers_layout, transformer_config
from modules.families.part_loading import load_text_encoder, part_tensors
from modules.families.parts import Part
from modules.families.prompt_tokenizer import load_prompt_tokenizer
from modules.families.source import Source
from modules.families.text_encoders import CLIP_TOKENIZERS, T5_TOKENIZERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_ENCODERS: Mapping[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}


def load_component(source: Source, component: str, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    part = source.part(component, PARTS)
    if component == "vae":
        return load_autoencoder(part, dtype)
    if component == "transformer":
        return _transformer(part, source.label, dtype)
    return load_text_encoder(TEXT_ENCODERS[component], part, dtype)


def _transformer(part: Part, label: str, dtype: torch.dtype) -> nn.Module:
    if part.folder:
        return load_diffusers_module(FluxTransformer2DModel, part.folder, dtype)
    tensors = in_diffusers_layout(part_tensors(part, dtype))
    with building(label, part.files, len(tensors)), torch.device("meta"):
        transformer: nn.Module = FluxTransformer2DModel(**transformer_config(tensors))
    assign_tensors(transformer, tensors, label)
    return transformer


def load_tokenizers(source: Source) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """CLIP's and T5's."""
    clip, t5 = (source.part(name, PARTS) for name in ("text_encoder", "text_encoder_2"))
    return (
        load_prompt_tokenizer(CLIPTokenizer, source.tokenizer("tokenizer", clip, CLIP_TOKENIZERS), clip.config),
        load_prompt_tokenizer(T5TokenizerFast, source.tokenizer("tokenizer_2", t5, T5_TOKENIZERS), t5.config),
    )
