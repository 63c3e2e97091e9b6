"""Linear layers whose weights stay in the few bits that their file has them in: GGUF, fp8, and bitsandbytes' formats.

They give the same bits as the dequantized weights, take as little memory on the device as the file does, and cost the
decoding of a layer in every forward.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from backend.checkpoints.packed_weight import PackedWeight, dequantize, levels_of
from backend.offload.quantized_linear import QuantizedLinear, quantizable, replace_layer


class PackedLinear(QuantizedLinear):
    """``part_0`` has the bits of every row, ``part_1`` the scales where they are not among them, ``levels`` what the
    bits stand for where they are no numbers."""

    levels: torch.Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, stored: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__(linear, dtype, stored)
        assert isinstance(linear.weight, PackedWeight)
        self.format = linear.weight.format
        self.register_buffer("levels", levels_of(self.format, linear.weight.device), persistent=False)

    @classmethod
    def takes(cls, path: str, linear: nn.Linear) -> bool:
        return isinstance(linear.weight, PackedWeight)

    @staticmethod
    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        assert isinstance(weight, PackedWeight)
        return {f"part_{number}": part for number, part in enumerate(weight.parts)}

    def dequantize(self) -> torch.Tensor:
        parts = [part for name, part in self.named_buffers(recurse=False) if name.startswith("part_")]
        return dequantize(self.format, parts, self.levels, self.in_features, self.dtype)


def keep_packed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replaces the linear layers of a model's blocks whose weights their file has packed; they compute in ``dtype``."""
    for path, layer in quantizable(module, PackedLinear):
        replace_layer(module, path, PackedLinear(layer, dtype))
    return module
