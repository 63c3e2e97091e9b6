"""A Flux transformer in black-forest-labs' names: the way back of ``modules/families/flux1/single_file.py``."""

from __future__ import annotations

import torch

from modules.families.flux1 import single_file as flux_checkpoint


def original_layout(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A diffusers transformer in black-forest-labs' names."""
    back: dict[str, torch.Tensor] = {}

    def take(name: str) -> torch.Tensor:
        return tensors[name]

    for ours, theirs in flux_checkpoint.EMBEDDERS.items():
        back |= {f"{ours}.{kind}": take(f"{theirs}.{kind}") for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        scale, shift = take(f"norm_out.linear.{kind}").chunk(2)
        back[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for index in range(flux_checkpoint.block_count(tensors, "transformer_blocks")):
        here, there = f"double_blocks.{index}", f"transformer_blocks.{index}"
        for ours, theirs in flux_checkpoint.DOUBLE.items():
            back |= {f"{here}.{ours}.{kind}": take(f"{there}.{theirs}.{kind}") for kind in ("weight", "bias")}
        back |= {f"{here}.{ours}": take(f"{there}.{theirs}") for ours, theirs in flux_checkpoint.DOUBLE_NORMS.items()}
        for ours, parts in (
            ("img_attn.qkv", ("to_q", "to_k", "to_v")),
            ("txt_attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            back |= {
                f"{here}.{ours}.{kind}": torch.cat([take(f"{there}.attn.{part}.{kind}") for part in parts])
                for kind in ("weight", "bias")
            }
    for index in range(flux_checkpoint.block_count(tensors, "single_transformer_blocks")):
        here, there = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        for ours, theirs in flux_checkpoint.SINGLE.items():
            back |= {f"{here}.{ours}.{kind}": take(f"{there}.{theirs}.{kind}") for kind in ("weight", "bias")}
        back |= {f"{here}.{ours}": take(f"{there}.{theirs}") for ours, theirs in flux_checkpoint.SINGLE_NORMS.items()}
        parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        back |= {
            f"{here}.linear1.{kind}": torch.cat([take(f"{there}.{part}.{kind}") for part in parts])
            for kind in ("weight", "bias")
        }
    return back
