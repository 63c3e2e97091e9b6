"""Tensors of FLUX.2 in the names of black-forest-labs, as diffusers names them. The renaming is diffusers' own.

The configuration of a transformer follows from the shapes of its tensors, so nothing has to be asked from a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backend.checkpoints.untrusted import untrusted
from backend.core.errors import WeightsError
from modules.families.autoencoder import in_diffusers_names
from modules.families.parts import Part

Tensors = Mapping[str, torch.Tensor]
STATISTICS = ("bn.running_mean", "bn.running_var")
"""By which the autoencoder's latents are normalised."""
INSIDE = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
"""Layers that black-forest-labs has inside of the encoder and the decoder."""


def transformer_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """A transformer's tensors, whichever names they have. Raises :class:`WeightsError` for what is none."""
    if not any(name.startswith("double_blocks.") for name in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    converted: Tensors = convert_flux2_transformer_checkpoint_to_diffusers(dict(tensors))
    return converted


def transformer_shapes(part: Part) -> dict[str, tuple[int, ...]]:
    """The shapes in a file's header as those of the transformer's tensors in diffusers' names. Raises
    :class:`WeightsError` for what is no such transformer."""
    without_data = {name: torch.empty(shape, device="meta") for name, shape in part.header.shapes.items()}
    with untrusted(part.label):
        tensors = transformer_names(without_data, part.config)
    transformer_config(tensors)  # names what a transformer would have and this has not
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def transformer_config(tensors: Tensors) -> dict[str, object]:
    """Arguments of ``Flux2Transformer2DModel`` for tensors in diffusers' names."""
    try:
        head = tensors["transformer_blocks.0.attn.norm_q.weight"].shape[0]
        inner, channels = tensors["x_embedder.weight"].shape
        text = tensors["context_embedder.weight"].shape[1]
        wide = tensors["transformer_blocks.0.ff.linear_out.weight"].shape[1]
        time = tensors["time_guidance_embed.timestep_embedder.linear_1.weight"].shape[1]
    except KeyError as missing:
        raise WeightsError(f"the checkpoint has no tensor {missing}; it is not a FLUX.2 transformer") from None
    return {
        "in_channels": channels,
        "num_layers": block_count(tensors, "transformer_blocks"),
        "num_single_layers": block_count(tensors, "single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": text,
        "timestep_guidance_channels": time,
        "mlp_ratio": wide / inner,
        "axes_dims_rope": [head // 4] * 4,
        "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in tensors,
    }


def block_count(names: Mapping[str, object], kind: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith(f"{kind}.")), default=-1)


def autoencoder_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """An autoencoder's tensors by diffusers' names, with the statistics of its latents."""
    moved = {}
    for name, tensor in tensors.items():
        inside = next((begin for begin in INSIDE if name.startswith(begin)), "")
        moved[INSIDE.get(inside, "") + name.removeprefix(inside)] = tensor
    statistics = {name: moved[name] for name in STATISTICS if name in moved}
    counted = moved.get("bn.num_batches_tracked", torch.zeros((), dtype=torch.long))  # of the training, and not read
    return {**in_diffusers_names(moved, config), **statistics, "bn.num_batches_tracked": counted}
