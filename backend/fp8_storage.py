"""Weights kept in 8 bits that compute in their full precision: half the memory of bf16, at the price of a cast per layer.

The scheme is diffusers' layerwise casting with two differences. Every row has a scale of its own, so that small weights keep
their digits: e4m3 has none left below 0.002. And the 8 bits stay while a layer computes, so nothing is cast back after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerFF

from backend.residence import block_modules

FORMAT = torch.float8_e4m3fn


class _CastWhileRunning:
    """Gives the linear layers of a part their weights in ``dtype`` for as long as its forward runs."""

    def __init__(self, part: nn.Module, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.stored: list[torch.Tensor] = []
        part.register_forward_pre_hook(self.widen)
        part.register_forward_hook(self.restore, always_call=True)

    def widen(self, module: nn.Module, inputs: object) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for layer in self.layers:
                stored = layer.weight.data
                layer.weight.data = stored.to(self.dtype).mul_(layer.get_buffer("row_scale"))
                self.stored.append(stored)

    def restore(self, module: nn.Module, inputs: object, output: object) -> None:
        for layer, stored in zip(self.layers, self.stored, strict=False):  # an error in the middle of widen() leaves fewer
            layer.weight.data = stored
        self.stored.clear()


def store_in_fp8(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Rounds the matrices of a model's blocks to 8 bits; what lies outside of them stays. ``dtype`` is what it computes in."""
    for block in block_modules(module):
        for part, layers in _parts(block):
            for layer in layers:
                _round(layer, dtype)
            _CastWhileRunning(part, layers, dtype)
    return module


def _parts(block: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    """The linear layers of a block, each by itself; but T5's feed-forward part, which asks its last layer for its type first, whole."""
    whole = [part for part in block.modules() if isinstance(part, T5LayerFF)]
    inside = {id(layer) for part in whole for layer in part.modules()}
    for part in whole:
        yield part, [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
    for layer in block.modules():
        if isinstance(layer, nn.Linear) and id(layer) not in inside:
            yield layer, [layer]


def _round(layer: nn.Linear, dtype: torch.dtype) -> None:
    """Every row by itself to the whole range of the format; a row of zeros stays one."""
    with torch.no_grad():
        weight = layer.weight.data.float()
        scale = weight.abs().amax(dim=1, keepdim=True).div_(torch.finfo(FORMAT).max)
        scale[scale == 0] = 1
        layer.weight.data = weight.div_(scale).to(FORMAT)
        layer.register_buffer("row_scale", scale.to(dtype), persistent=False)
