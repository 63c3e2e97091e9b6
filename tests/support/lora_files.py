"""Random adapters, and files of them in the layouts of all trainers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from modules.lora.files.lora_file import LoraFile

Pair = tuple[torch.Tensor, torch.Tensor]
"""Rank x inputs, outputs x rank."""
Tensors = dict[str, torch.Tensor]
RANK = 4


def lora_file(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> LoraFile:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return LoraFile(path.stem, path, hashlib.sha256(path.read_bytes()).hexdigest())


def random_pairs(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, size: float = 0.15, rank: int = RANK
) -> dict[str, Pair]:
    """A LoRA for layers of these shapes, as strong as can be seen at once."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for path, (outputs, *inputs) in shapes.items():
        down = torch.randn(rank, *inputs, generator=generator) * size
        up = torch.randn(outputs, rank, generator=generator) * size
        pairs[path] = (down, up[:, :, None, None] if len(inputs) > 1 else up)
    return pairs


def named(
    pairs: Mapping[str, Pair], name: Callable[[str], str], down: str = "lora_A.weight", up: str = "lora_B.weight"
) -> Tensors:
    """The pairs under ``name`` of their path and these endings."""
    return {
        f"{name(path)}.{end}": one for path, pair in pairs.items() for end, one in zip((down, up), pair, strict=True)
    }


def underscored(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.replace(".", "_")


def with_alpha(tensors: Tensors, alpha: float) -> Tensors:
    """With an alpha that makes all of it ``alpha`` / rank times as strong."""
    stems = {name.rsplit(".lora_", 1)[0] for name in tensors}
    return {**tensors, **{f"{stem}.alpha": torch.tensor(alpha) for stem in stems}}
