"""The components of a FLUX.2 klein model, from wherever they lie."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn

from backend.checkpoints.build_budget import building
from backend.checkpoints.loader import assign_tensors
from backend.checkpoints.untrusted import untrusted
from modules.families.autoencoder import autoencoder_precision
from modules.families.flux2_klein.parts import PARTS, TEXT_LAYERS
from modules.families.flux2_klein.single_file import autoencoder_names, transformer_config, transformer_names
from modules.families.part_loading import load_diffusers_part, part_tensors
from modules.families.parts import Part
from modules.families.qwen3_network import load_first_layers
from modules.families.source import Source


def load_component(source: Source, component: str, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    part = source.part(component, PARTS)
    if component == "text_encoder":
        return load_first_layers(part, max(TEXT_LAYERS), dtype)
    if component == "vae":
        precision = autoencoder_precision(part.config, dtype)
        return load_diffusers_part(AutoencoderKLFlux2, part, precision, autoencoder_names)
    return load_diffusers_part(Flux2Transformer2DModel, part, dtype) if part.folder else _transformer(part, dtype)


def _transformer(part: Part, dtype: torch.dtype) -> nn.Module:
    tensors = part_tensors(part, dtype)
    with untrusted(part.label):
        tensors = dict(transformer_names(tensors, part.config))
    with building(part.label, part.files, len(tensors)), torch.device("meta"):
        transformer: nn.Module = Flux2Transformer2DModel(**transformer_config(tensors))
    assign_tensors(transformer, tensors, part.label)
    return transformer
