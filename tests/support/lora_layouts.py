"""One adapter in the layouts in which trainers and programs publish LoRA files, for FLUX.1 and for models with a UNet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from support import original_names
from support.lora_files import RANK, Pair, Tensors, named, underscored, with_alpha

from modules.families.flux1.lora_names import DOUBLE, EMBEDDERS, SINGLE

Pairs = Mapping[str, Pair]
DOWN, UP = "lora_down.weight", "lora_up.weight"
QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def bfl_names(pairs: Pairs) -> dict[str, Pair]:
    """In black-forest-labs' names. Layers that are one there get ranks side by side, each for its own rows."""
    found: dict[str, Pair] = {}
    top = {theirs: ours for ours, theirs in EMBEDDERS.items()}
    for path, (down, up) in pairs.items():
        if path in top:
            found[top[path]] = (down, up)
        elif path == "norm_out.linear":
            scale, shift = up.chunk(2)
            found["final_layer.adaLN_modulation.1"] = (down, torch.cat([shift, scale]))
        else:
            kind, index, inner = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", path).groups()  # type: ignore[union-attr]
            double = kind == "transformer_blocks"
            table = {theirs: ours for ours, theirs in (DOUBLE if double else SINGLE).items()}
            if inner in table:
                found[f"{'double' if double else 'single'}_blocks.{index}.{table[inner]}"] = (down, up)
    for index in sorted({path.split(".")[1] for path in pairs if path.startswith("transformer_blocks.")}):
        block = f"transformer_blocks.{index}.attn."
        for name, parts in (("img_attn", QKV), ("txt_attn", ADDED)):
            found[f"double_blocks.{index}.{name}.qkv"] = fused([pairs[block + part] for part in parts])
    for index in sorted({path.split(".")[1] for path in pairs if path.startswith("single_transformer_blocks.")}):
        block = f"single_transformer_blocks.{index}."
        paths = [*(f"{block}attn.{part}" for part in QKV), f"{block}proj_mlp"]
        found[f"single_blocks.{index}.linear1"] = fused([pairs[path] for path in paths])
    return found


def fused(parts: list[Pair]) -> Pair:
    """Layers below each other as one: their ranks side by side."""
    return torch.cat([down for down, _ in parts]), torch.block_diag(*(up for _, up in parts))


def xlabs_names(pairs: Pairs) -> Tensors:
    """XLabs' names, which exist for the attention of double blocks, and of single blocks for queries, keys and values
    and the last layer. Other layers are left out."""
    tensors: Tensors = {}
    for index in sorted({path.split(".")[1] for path in pairs if path.startswith("transformer_blocks.")}):
        block = f"transformer_blocks.{index}.attn."
        parts = {
            "qkv_lora1": fused([pairs[block + part] for part in QKV]),
            "qkv_lora2": fused([pairs[block + part] for part in ADDED]),
            "proj_lora1": pairs[block + "to_out.0"],
            "proj_lora2": pairs[block + "to_add_out"],
        }
        tensors |= named(parts, lambda name, i=index: f"double_blocks.{i}.processor.{name}", "down.weight", "up.weight")  # type: ignore[misc]
    for index in sorted({path.split(".")[1] for path in pairs if path.startswith("single_transformer_blocks.")}):
        block = f"single_transformer_blocks.{index}."
        parts = {
            "qkv_lora": fused([pairs[f"{block}attn.{part}"] for part in QKV]),
            "proj_lora": pairs[f"{block}proj_out"],
        }
        tensors |= named(parts, lambda name, i=index: f"single_blocks.{i}.processor.{name}", "down.weight", "up.weight")  # type: ignore[misc]
    return tensors


def in_xlabs(path: str) -> bool:
    """Whether XLabs' files can have this layer."""
    return ".attn." in path or bool(re.fullmatch(r"single_transformer_blocks\.\d+\.proj_out", path))


def peft_named(pairs: Pairs) -> Tensors:
    return named(pairs, lambda path: f"base_model.model.{path}", "lora_A.default.weight", "lora_B.default.weight")


FLUX: Mapping[str, Callable[[Pairs], Tensors]] = {
    "diffusers": lambda pairs: named(pairs, lambda path: f"transformer.{path}"),
    "old diffusers": lambda pairs: named(
        pairs, lambda path: f"transformer.{path}", "lora.down.weight", "lora.up.weight"
    ),
    "peft": peft_named,
    "without a prefix": lambda pairs: named(pairs, str),
    "ai-toolkit": lambda pairs: named(pairs, lambda path: f"diffusion_model.{path}"),
    "OneTrainer": lambda pairs: with_alpha(named(pairs, underscored("lora_transformer_"), DOWN, UP), RANK),
    "LyCORIS": lambda pairs: with_alpha(named(pairs, underscored("lycoris_"), DOWN, UP), RANK),
    "kohya": lambda pairs: named(bfl_names(pairs), underscored("lora_unet_"), DOWN, UP),
    "ComfyUI": lambda pairs: named(bfl_names(pairs), lambda path: f"diffusion_model.{path}", DOWN, UP),
    "BFL": lambda pairs: named(bfl_names(pairs), str),
    "XLabs": xlabs_names,
}
"""All have every layer of the transformer, but for XLabs'."""


def original_unet_names(pairs: Pairs, layers: int) -> dict[str, Pair]:
    """Layers of a UNet with so many layers a block by the names of the first code."""
    weights = {f"{path}.weight": pair for path, pair in pairs.items()}
    found = original_names.unet(weights, layers)  # type: ignore[arg-type]
    return {name.removeprefix("model.diffusion_model.").removesuffix(".weight"): pair for name, pair in found.items()}  # type: ignore[misc]


def old_attention(pairs: Pairs) -> Tensors:
    """As diffusers' first LoRA files: the object that computes the attention is in the name."""

    def renamed(path: str) -> str:
        found = re.fullmatch(r"(.+\.attn\d)\.(\w+)(\.0)?", path)
        return f"unet.{found[1]}.processor.{found[2]}_lora" if found else f"unet.{path}.lora"

    return named(pairs, renamed, "down.weight", "up.weight")


def unet(layers: int) -> Mapping[str, Callable[[Pairs], Tensors]]:
    """The layouts for a UNet with so many layers a block."""
    return {
        "diffusers": lambda pairs: named(pairs, lambda path: f"unet.{path}"),
        "old diffusers": old_attention,
        "peft": peft_named,
        "kohya": lambda pairs: with_alpha(named(pairs, underscored("lora_unet_"), DOWN, UP), RANK),
        "first code": lambda pairs: with_alpha(
            named(original_unet_names(pairs, layers), underscored("lora_unet_"), DOWN, UP), RANK
        ),
        "ComfyUI": lambda pairs: named(
            original_unet_names(pairs, layers), lambda path: f"diffusion_model.{path}", DOWN, UP
        ),
    }
