"""Single-file Flux checkpoints, in the key names of black-forest-labs, as a diffusers transformer.

The whole configuration follows from the shapes of the tensors, so nothing has to be asked from a hub.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from backend.core.errors import WeightsError

PREFIX = "model.diffusion_model."

EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
SINGLE_NORMS = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}


def is_original_layout(names: Mapping[str, object]) -> bool:
    """Whether the tensor names are those of black-forest-labs (and not of diffusers)."""
    return any(name.removeprefix(PREFIX).startswith("double_blocks.") for name in names)


def in_diffusers_layout(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The tensors by diffusers' names, whichever they have."""
    if is_original_layout(tensors):
        return to_diffusers(tensors)
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def transformer_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes in a file's header as those of the transformer's tensors in diffusers' layout. Raises
    :class:`WeightsError` for what is no Flux transformer."""
    without_data = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    tensors = in_diffusers_layout(without_data)
    transformer_config(tensors)  # names what a transformer would have and this has not
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def block_count(names: Mapping[str, object], kind: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith(f"{kind}.")), default=-1)


def transformer_config(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Arguments of ``FluxTransformer2DModel`` for tensors in the diffusers layout."""
    try:
        head = tensors["transformer_blocks.0.attn.norm_q.weight"].shape[0]
        inner, channels = tensors["x_embedder.weight"].shape
        text = tensors["context_embedder.weight"].shape[1]
        pooled = tensors["time_text_embed.text_embedder.linear_1.weight"].shape[1]
        predicted = tensors["proj_out.weight"].shape[0]
    except KeyError as missing:
        raise WeightsError(f"the checkpoint has no tensor {missing}; it is not a Flux transformer") from None
    rest = head * 7 // 16
    return {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": predicted,
        "num_layers": block_count(tensors, "transformer_blocks"),
        "num_single_layers": block_count(tensors, "single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": text,
        "pooled_projection_dim": pooled,
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in tensors,
        "axes_dims_rope": [head - 2 * rest, rest, rest],
    }


def to_diffusers(original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors in black-forest-labs' names to those of ``FluxTransformer2DModel``. Raises :class:`WeightsError` for
    an unknown name."""
    converted: dict[str, torch.Tensor] = {}
    for full_name, tensor in original.items():
        name = full_name.removeprefix(PREFIX)
        stem, _, kind = name.rpartition(".")
        if stem in EMBEDDERS:
            converted[f"{EMBEDDERS[stem]}.{kind}"] = tensor
        elif stem == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)  # diffusers has the scale first
            converted[f"norm_out.linear.{kind}"] = torch.cat([scale, shift])
        elif name.startswith("double_blocks."):
            _, index, inner = name.split(".", 2)
            converted |= convert_double(f"transformer_blocks.{index}", inner, tensor)
        elif name.startswith("single_blocks."):
            _, index, inner = name.split(".", 2)
            converted |= convert_single(f"single_transformer_blocks.{index}", inner, tensor)
        else:
            raise WeightsError(f"the checkpoint holds a tensor '{name}' that a Flux transformer does not have")
    return converted


def convert_double(block: str, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    stem, _, kind = name.rpartition(".")
    if stem in DOUBLE:
        return {f"{block}.{DOUBLE[stem]}.{kind}": tensor}
    if name in DOUBLE_NORMS:
        return {f"{block}.{DOUBLE_NORMS[name]}": tensor}
    targets = {"img_attn.qkv": ("to_q", "to_k", "to_v"), "txt_attn.qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
    if stem not in targets:
        raise WeightsError(f"the checkpoint holds a tensor '{name}' that a Flux block does not have")
    return {f"{block}.attn.{target}.{kind}": part.clone() for target, part in zip(targets[stem], tensor.chunk(3))}


def convert_single(block: str, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    stem, _, kind = name.rpartition(".")
    if stem in SINGLE:
        return {f"{block}.{SINGLE[stem]}.{kind}": tensor}
    if name in SINGLE_NORMS:
        return {f"{block}.{SINGLE_NORMS[name]}": tensor}
    if stem != "linear1":
        raise WeightsError(f"the checkpoint holds a tensor '{name}' that a Flux block does not have")
    # q, k, v and the MLP's first layer (four times as wide) stand below each other: 3 + 4 parts
    width = tensor.shape[0] // 7
    parts = tensor.split([width, width, width, tensor.shape[0] - 3 * width])
    return {
        f"{block}.{target}.{kind}": part.clone()
        for target, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts)
    }
