"""FLUX.2's weights in black-forest-labs' names, as single files have them: the way back of what diffusers does."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from support.original_names import vae

Tensors = dict[str, torch.Tensor]
TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "attn.to_out.0.weight": "img_attn.proj.weight",
    "attn.to_add_out.weight": "txt_attn.proj.weight",
    "ff.linear_in.weight": "img_mlp.0.weight",
    "ff.linear_out.weight": "img_mlp.2.weight",
    "ff_context.linear_in.weight": "txt_mlp.0.weight",
    "ff_context.linear_out.weight": "txt_mlp.2.weight",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
}
SINGLE = {
    "attn.to_qkv_mlp_proj.weight": "linear1.weight",
    "attn.to_out.weight": "linear2.weight",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}
TOGETHER = {"attn.to_q": ("img_attn.qkv", "to_q", "to_k", "to_v")}
TOGETHER |= {"attn.add_q_proj": ("txt_attn.qkv", "add_q_proj", "add_k_proj", "add_v_proj")}
BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def transformer_names(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    written: Tensors = {}
    for name, tensor in tensors.items():
        if found := BLOCK.fullmatch(name):
            inner = found[3].removesuffix(".weight")
            block = f"{'single' if found[1] else 'double'}_blocks.{found[2]}"
            if inner in TOGETHER:
                whole, *parts = TOGETHER[inner]
                beginning = name.removesuffix(".weight").rpartition(".")[0]
                written[f"{block}.{whole}.weight"] = torch.cat(
                    [tensors[f"{beginning}.{part}.weight"] for part in parts]
                )
            elif own := (SINGLE if found[1] else DOUBLE).get(found[3]):
                written[f"{block}.{own}"] = tensor
        elif name == "norm_out.linear.weight":
            scale, shift = tensor.chunk(2)
            written["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
        else:
            written[f"{TOP[name.removesuffix('.weight')]}.weight"] = tensor
    return written


def autoencoder_names(tensors: Mapping[str, torch.Tensor], blocks: int) -> Tensors:
    """An autoencoder with so many blocks a side."""
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    named = {name.removeprefix("first_stage_model."): tensor for name, tensor in vae(tensors, blocks).items()}
    return {re.sub(r"^\w+", lambda match: inside.get(match[0], match[0]), name): named[name] for name in named}
