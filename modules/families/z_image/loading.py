"""The components of a Z-Image model, from wherever they lie."""

from __future__ import annotations

import torch
from diffusers import ZImageTransformer2DModel
from torch import nn

from modules.families.autoencoder import load_autoencoder
from modules.families.part_loading import load_diffusers_part
from modules.families.qwen3 import layer_count
from modules.families.qwen3_network import load_first_layers
from modules.families.source import Source
from modules.families.z_image.parts import PARTS
from modules.families.z_image.single_file import transformer_names


def load_component(source: Source, component: str, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    part = source.part(component, PARTS)
    if component == "text_encoder":
        return load_first_layers(part, layer_count(part.config) - 1, dtype)
    if component == "vae":
        return load_autoencoder(part, dtype)
    return load_diffusers_part(ZImageTransformer2DModel, part, dtype, transformer_names)
