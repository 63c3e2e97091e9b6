"""Tensors of Z-Image in the names of its first code, as diffusers names them. The renaming is diffusers' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]


def transformer_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A transformer's tensors, whichever names they have."""
    if any(name.startswith("all_x_embedder.") for name in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

    converted: Tensors = convert_z_image_transformer_checkpoint_to_diffusers(dict(tensors))
    return converted
