"""Weights kept in 8 or 4 bits that compute in their full precision: less memory, at the price of a cast per layer.

"fp8" is diffusers' layerwise casting with two differences: every row has a scale of its own, so that small weights keep
their digits (e4m3 has none left below 0.002), and the 8 bits stay while a layer computes, so nothing is cast back after
it. "nf4" is the format of QLoRA (Dettmers et al., https://arxiv.org/abs/2305.14314, 2023), as bitsandbytes has it. All
that a layer stores is a weight or a buffer of its own, so that a rounded model can be lent, swapped and streamed like
any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers.models.t5.modeling_t5 import T5LayerFF

from backend.offload.placements import block_modules

FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64
"""Neighbouring weights of a row that share a scale."""
NF4_LEVELS = (
    *(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
    ),
    *(
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
"""Quantiles of a normal distribution between -1 and 1, zero among them (appendix E of the paper)."""


class Format(Protocol):
    """How a weight, rows x columns, is stored: as ``layer.weight`` and buffers of the layer."""

    def quantize(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        """Replaces the layer's weight by what is stored."""

    def dequantized(self, layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
        """The weight to compute with."""


class Fp8:
    """Every row to the whole range of the format; a row of zeros stays one."""

    def quantize(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        weight = layer.weight.data.float()
        scale = weight.abs().amax(dim=1, keepdim=True).div_(torch.finfo(FP8).max)
        scale[scale == 0] = 1
        layer.weight.data = weight.div_(scale).to(FP8)
        layer.register_buffer("scale", scale.to(dtype), persistent=False)

    def dequantized(self, layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
        return layer.weight.data.to(dtype).mul_(layer.get_buffer("scale"))


class Nf4:
    """Blocks of 64 weights to 16 levels; two weights a byte. A layer whose rows are no whole number of blocks stays
    as it is."""

    def quantize(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        if layer.in_features % NF4_BLOCK:
            return
        blocks = layer.weight.data.float().unflatten(1, (-1, NF4_BLOCK))
        scale = blocks.abs().amax(dim=2, keepdim=True)
        levels = torch.tensor(NF4_LEVELS)
        nearest = (
            torch.bucketize(blocks / scale.clamp(min=1e-30), (levels[1:] + levels[:-1]) / 2).to(torch.uint8).flatten(1)
        )
        layer.weight.data = nearest[:, ::2] + 16 * nearest[:, 1::2]
        byte = torch.arange(256)
        layer.register_buffer("scale", scale.squeeze(2), persistent=False)
        layer.register_buffer(
            "pairs", torch.stack([levels[byte % 16], levels[byte // 16]], dim=1).to(dtype), persistent=False
        )

    def dequantized(self, layer: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
        if layer.weight.dtype != torch.uint8:
            return layer.weight.data
        blocks = (
            functional.embedding(layer.weight.data.int(), layer.get_buffer("pairs"))
            .flatten(1)
            .unflatten(1, (-1, NF4_BLOCK))
        )
        weight: torch.Tensor = blocks.mul_(layer.get_buffer("scale").unsqueeze(2).to(dtype)).flatten(1)
        return weight


FORMATS: Mapping[str, Format] = MappingProxyType({"fp8": Fp8(), "nf4": Nf4()})


class _WideWhileRunning:
    """Gives the linear layers of a part their weights in ``dtype`` for as long as its forward runs."""

    def __init__(self, part: nn.Module, layers: list[nn.Linear], stored_as: Format, dtype: torch.dtype) -> None:
        self.layers, self.format, self.dtype = layers, stored_as, dtype
        self.stored: list[torch.Tensor] = []
        part.register_forward_pre_hook(self.widen)
        part.register_forward_hook(self.restore, always_call=True)

    def widen(self, module: nn.Module, inputs: object) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for layer in self.layers:
                wide = self.format.dequantized(layer, self.dtype)
                self.stored.append(layer.weight.data)
                layer.weight.data = wide

    def restore(self, module: nn.Module, inputs: object, output: object) -> None:
        for layer, stored in zip(
            self.layers, self.stored, strict=False
        ):  # an error in the middle of widen() leaves fewer
            layer.weight.data = stored
        self.stored.clear()


def quantize(module: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    """Rounds the matrices of a model's blocks to the format of that name; what lies outside of them stays. It
    computes in ``dtype``."""
    for block in block_modules(module):
        for part, layers in _parts(block):
            with torch.no_grad():
                for layer in layers:
                    layer.weight.requires_grad_(False)  # bytes have no gradient
                    FORMATS[name].quantize(layer, dtype)
            _WideWhileRunning(part, layers, FORMATS[name], dtype)
    return module


def _parts(block: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    """The linear layers of a block, each by itself; but T5's feed-forward part, which asks its last layer for its
    type first, whole."""
    whole = [part for part in block.modules() if isinstance(part, T5LayerFF)]
    inside = {id(layer) for part in whole for layer in part.modules()}
    for part in whole:
        yield part, [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
    for layer in block.modules():
        if isinstance(layer, nn.Linear) and id(layer) not in inside:
            yield layer, [layer]
