"""Linear layers whose weights are stored in 8 or 4 bits and dequantized in ``forward``: less memory for a cast a layer.

"fp8" is e4m3 with one scale a row, so that small weights keep their digits (e4m3 has none left below 0.002). "nf4" is
the format of QLoRA (Dettmers et al., https://arxiv.org/abs/2305.14314, 2023), as bitsandbytes has it.

A forward changes nothing of the layer: the dequantized weight is a local tensor. So one model may be used by several
threads, and its blocks can be compiled. All that a layer stores is a buffer, so a quantized model is moved and streamed
like any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional

from backend.offload.placements import block_modules

FP8 = torch.float8_e4m3fn
NF4_BLOCK = 64
"""Neighbouring weights of a row that share a scale."""
# fmt: off
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
"""Quantiles of a normal distribution between -1 and 1, zero among them (appendix E of the paper)."""


class QuantizedLinear(nn.Linear, ABC):
    """A copy of ``linear`` with its weight quantized. It computes in ``dtype``; the bias stays as it is.

    ``weight`` is a tensor on the meta device: the shape and type that the layer computes with, and no data. T5 reads
    ``weight.dtype`` twice before every call, which must not dequantize. Reading values from it is an error;
    :meth:`dequantize` returns them.
    """

    weight_group = 1
    """The length of a row must be a multiple of this."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear's would allocate and fill a whole weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_parameter("bias", linear.bias)
        # no parameter, so that whoever moves or counts the model's tensors does not see it
        self.weight = torch.empty(linear.weight.shape, dtype=dtype, device="meta")

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """The weight as a new tensor, rows x columns, in the type that the layer computes in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.dequantize(), self.bias)


class Fp8Linear(QuantizedLinear):
    """Every row is scaled to the whole range of e4m3."""

    quantized: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).div_(torch.finfo(FP8).max)
        scale[scale == 0] = 1  # a row of zeros stays one
        self.register_buffer("quantized", (weight / scale).to(FP8))
        self.register_buffer("scale", scale.to(dtype))

    def dequantize(self) -> torch.Tensor:
        return self.quantized.to(self.weight.dtype).mul_(self.scale)


class Nf4Linear(QuantizedLinear):
    """Every block of 64 weights is scaled to -1..1 and rounded to 16 levels; a byte holds two weights."""

    weight_group = NF4_BLOCK
    quantized: torch.Tensor
    scale: torch.Tensor
    pairs: torch.Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        blocks = linear.weight.detach().float().unflatten(1, (-1, NF4_BLOCK))
        scale = blocks.abs().amax(dim=2, keepdim=True)
        levels = torch.tensor(NF4_LEVELS)
        halfway = (levels[1:] + levels[:-1]) / 2
        nearest = torch.bucketize(blocks / scale.clamp(min=1e-30), halfway).to(torch.uint8).flatten(1)
        self.register_buffer("quantized", nearest[:, ::2] + 16 * nearest[:, 1::2])
        self.register_buffer("scale", scale.squeeze(2))
        # both weights of a byte are looked up at once
        byte = torch.arange(256)
        self.register_buffer("pairs", torch.stack([levels[byte % 16], levels[byte // 16]], dim=1).to(dtype))

    def dequantize(self) -> torch.Tensor:
        weight: torch.Tensor = functional.embedding(self.quantized.int(), self.pairs).flatten(1)
        blocks = weight.unflatten(1, (-1, NF4_BLOCK))
        blocks.mul_(self.scale.unsqueeze(2).to(weight.dtype))  # in place: the view shares the new weight's memory
        return weight


FORMATS: Mapping[str, type[QuantizedLinear]] = MappingProxyType({"fp8": Fp8Linear, "nf4": Nf4Linear})


def quantize(module: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    """Replaces the linear layers inside of a model's blocks by ``FORMATS[name]``, computing in ``dtype``.

    What lies outside of the blocks stays as it is, and so do layers whose rows the format cannot divide into groups.
    """
    kind = FORMATS[name]
    inside = {id(part) for block in block_modules(module) for part in block.modules()}
    # names, not layers: a list of layers would keep all the old weights until the end
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.Linear) and id(part) in inside]
    for path in paths:
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        if layer.in_features % kind.weight_group == 0:
            parent, _, attribute = path.rpartition(".")
            setattr(module.get_submodule(parent), attribute, kind(layer, dtype))
    return module
