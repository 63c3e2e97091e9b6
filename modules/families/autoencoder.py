"""How an ``AutoencoderKL`` is known and read, whichever family it belongs to and whoever named its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from backend.checkpoints.config import Config
from backend.checkpoints.header import Header
from backend.core.errors import WeightsError
from modules.families.parts import PartKind

if TYPE_CHECKING:
    import torch
    from torch import nn

    from modules.families.parts import Part

PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }
)
"""What those of FLUX.1, SDXL and SD 1.5 have in common."""
OWN = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""How the names of its tensors begin; others are what training left."""
OLD_ATTENTION = MappingProxyType({"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"})
"""The layers of an attention as diffusers called them until 2023, and as it calls them now."""
_OLD = re.compile(r"(mid_block\.attentions\.\d+)\.(query|key|value|proj_attn)\.")


def autoencoder_kind(**published: Any) -> PartKind:
    """How an autoencoder is known; ``published`` is what the family's has of its own."""
    return PartKind(
        "an autoencoder (VAE)",
        ("decoder.conv_in.weight",),
        {"block_out_channels": 0, "latent_channels": 1},
        {**PUBLISHED, **published},
    )


def block_channels(config: Config) -> list[int]:
    """The channels of its blocks, of which each but the last halves the picture. Raises WeightsError without any."""
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise WeightsError(f"{config.name} names no block_out_channels; this is no autoencoder that can be used")
    return channels


def autoencoder_precision(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 for an autoencoder that overflows in fp16; ``config`` is its ``config.json``."""
    import torch

    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype


def in_diffusers_names(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by the names that diffusers has for them now, whichever they have."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(OWN)}
    if any(name.startswith("decoder.mid_block.") for name in own):
        named = {_OLD.sub(lambda found: f"{found[1]}.{OLD_ATTENTION[found[2]]}.", name): own[name] for name in own}
        # attention was written as convolutions of one pixel before
        return {name: tensor[:, :, 0, 0] if _is_matrix(name, tensor) else tensor for name, tensor in named.items()}
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted: dict[str, torch.Tensor] = convert_ldm_vae_checkpoint(own, dict(config))
    return converted


def autoencoder_header(part: Part) -> Header:
    """Its tensors as diffusers names them."""
    if all(not _OLD.search(name) and ".mid.block_" not in name for name in part.header.shapes):
        return part.header
    from modules.families.part_loading import renamed_header

    return renamed_header(part.header, in_diffusers_names, part.config, part.label)


def _is_matrix(name: str, tensor: torch.Tensor) -> bool:
    return ".attentions." in name and ".to_" in name and tensor.ndim == 4


def load_autoencoder(part: Part, dtype: torch.dtype) -> nn.Module:
    """Raises :class:`backend.core.errors.WeightsError` that names a missing or damaged file."""
    from diffusers import AutoencoderKL

    from modules.families.part_loading import load_diffusers_part

    return load_diffusers_part(AutoencoderKL, part, autoencoder_precision(part.config, dtype), in_diffusers_names)
