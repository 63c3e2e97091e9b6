"""Tensors of SDXL and SD 1.5 in the names of their first code, as diffusers and transformers name them.

The renaming is diffusers' own. What a part looks like is in its ``config.json``, so nothing has to be asked from a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
UNET = "model.diffusion_model."
"""What diffusers expects before the names of a UNet."""
LAYERS = ("add_embedding.", "conv_", "down_blocks.", "mid_block.", "time_embedding.", "up_blocks.")
"""How the names of its tensors begin in diffusers; others are what training left, and markers."""


def unet_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A UNet's tensors, whichever names they have."""
    if not any(name.startswith("input_blocks.") for name in tensors):
        return {name: tensor for name, tensor in tensors.items() if name.startswith(LAYERS)}
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    converted: Tensors = convert_ldm_unet_checkpoint(
        {f"{UNET}{name}": tensor for name, tensor in tensors.items()}, dict(config)
    )
    return converted


def open_clip_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A text encoder's tensors: from OpenCLIP's names, or as transformers has them already."""
    if "positional_embedding" not in tensors:
        return tensors
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    # of the module diffusers asks its width alone, where the file has no projection that tells it
    module = SimpleNamespace(config=SimpleNamespace(hidden_size=config.get("hidden_size")))
    converted: Tensors = convert_open_clip_checkpoint(module, dict(tensors), "")
    return converted
