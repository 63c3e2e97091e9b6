"""Stable Diffusion's weights in the key names of its first code, as single-file checkpoints have them: the inverse
of what diffusers does."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
}
TOP |= {"conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet(tensors: Mapping[str, torch.Tensor], layers: int) -> Tensors:
    """A UNet with so many layers a block."""

    def renamed(name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in TOP:
            return f"{TOP[stem]}.{kind}"
        part, inner = re.fullmatch(
            r"((?:down_blocks|up_blocks)\.\d+\.\w+\.\d+|mid_block\.\w+\.\d+)\.(.+)", name
        ).groups()  # type: ignore[union-attr]
        where, *numbers = re.split(r"\.(?=\d)|(?<=\d)\.", part)
        inner = re.sub(
            r"^(norm1|conv1|time_emb_proj|norm2|conv2)(?=\.)", lambda match: RESNET[match[1]], inner
        ).replace("conv_shortcut", "skip_connection")
        if where == "mid_block.resnets" or where == "mid_block.attentions":
            return f"middle_block.{2 * int(numbers[0]) if 'resnets' in where else 1}.{inner}"
        block, kind, index = int(numbers[0]), numbers[1], int(numbers[2])
        if where == "down_blocks":
            if kind == "downsamplers":
                return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{inner.removeprefix('conv.')}"
            return f"input_blocks.{1 + block * (layers + 1) + index}.{int(kind == 'attentions')}.{inner}"
        if kind == "upsamplers":
            attends = any(key.startswith(f"up_blocks.{block}.attentions") for key in tensors)
            return f"output_blocks.{(block + 1) * (layers + 1) - 1}.{1 + attends}.{inner}"
        return f"output_blocks.{block * (layers + 1) + index}.{int(kind == 'attentions')}.{inner}"

    return {f"model.diffusion_model.{renamed(name)}": tensor for name, tensor in tensors.items()}


def vae(tensors: Mapping[str, torch.Tensor], blocks: int) -> Tensors:
    """An autoencoder with so many blocks a side; its attention is written as convolutions."""

    def renamed(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = (
            name.replace("mid_block.attentions.0", "mid.attn_1")
            .replace("conv_shortcut", "nin_shortcut")
            .replace("conv_norm_out", "norm_out")
        )
        for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"attn_1.{new}", f"attn_1.{old}")
        return f"first_stage_model.{name}"

    written = {renamed(name): tensor for name, tensor in tensors.items()}
    return {
        name: tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
        for name, tensor in written.items()
    }


def open_clip(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """SDXL's second text encoder, whose queries, keys and values stand in one matrix."""
    top = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    top |= {
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    written: Tensors = {}
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            written["text_projection"] = tensor.T.contiguous()
        elif name in top:
            written[top[name]] = tensor
        elif "q_proj" in name:
            whole = torch.cat([tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            layer, kind = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name).groups()  # type: ignore[union-attr]
            written[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = whole
        elif "k_proj" not in name and "v_proj" not in name:
            layer, inner, kind = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(\w+)", name).groups()  # type: ignore[union-attr]
            written[f"transformer.resblocks.{layer}.{LAYER[inner]}.{kind}"] = tensor
    return {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in written.items()}
