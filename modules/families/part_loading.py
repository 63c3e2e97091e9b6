"""Reads one part of a model into host memory, from wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.checkpoints.build_budget import building
from backend.checkpoints.config import Config, check_model_folder
from backend.checkpoints.folder_files import shard_files
from backend.checkpoints.header import Header
from backend.checkpoints.loader import (
    assign_tensors,
    component_config,
    read_tensors,
    transformers_module,
)
from backend.checkpoints.untrusted import untrusted
from modules.families.parts import Part

Tensors = Mapping[str, torch.Tensor]
Rename = Callable[[Tensors, Mapping[str, Any]], Tensors]
"""From tensors in any names, and the configuration of their part, to those of the module."""
SURPLUS = ("logit_scale", "embeddings.position_ids", "text_model.embeddings.position_ids")
"""What files of text encoders hold beside the weights."""


def unchanged(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    return tensors


def part_files(part: Part) -> Sequence[Path]:
    return shard_files(part.folder) if part.folder else part.files


def part_tensors(part: Part, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Its tensors by their names without the prefix, floating point ones in ``dtype``."""
    tensors = read_tensors(part_files(part), dtype, (part.prefix,))
    return {name: tensors[part.prefix + name] for name in part.header.shapes}


def load_diffusers_part(module_class: Any, part: Part, dtype: torch.dtype, rename: Rename = unchanged) -> nn.Module:
    """The part as a module of diffusers. Raises :class:`WeightsError` where it is damaged or does not fit."""
    tensors, config = part_tensors(part, dtype), _config(part)
    with untrusted(part.label):
        tensors = dict(rename(tensors, config))
    with building(config.name, part_files(part), len(tensors)), torch.device("meta"):
        module: nn.Module = module_class.from_config(dict(config))
    assign_tensors(module, tensors, part.label)
    return module


def load_text_encoder(module_class: Any, part: Part, dtype: torch.dtype, rename: Rename = unchanged) -> nn.Module:
    """The part as a module of transformers. Raises :class:`WeightsError` where it is damaged or does not fit."""
    tensors, config = part_tensors(part, dtype), _config(part)
    with untrusted(part.label):
        named = {name: tensor for name, tensor in rename(tensors, config).items() if name not in SURPLUS}
    return transformers_module(module_class, config, named, part_files(part), dtype, part.label)


def _config(part: Part) -> Config:
    """Its configuration, after every file beside it has been looked at in which a library would look."""
    folder = part.folder or (part.home / part.component if part.home else None)
    if folder:
        check_model_folder(folder)
        return component_config(folder)
    return part.config


def renamed_header(header: Header, rename: Rename, config: Mapping[str, Any], label: str) -> Header:
    """The header with the names and shapes of the module's tensors."""
    without_data = {name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()}
    with untrusted(label):
        shapes = {name: tuple(tensor.shape) for name, tensor in rename(without_data, config).items()}
    return Header(shapes, dict.fromkeys(shapes, header.precision))
