"""Weights in the few bits that a file has them in: what their values are, and a tensor that keeps them so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from backend.checkpoints.entries import GGUF_BLOCKS, WEIGHTS_AT_ONCE
from backend.checkpoints.gguf_types import LEVEL_DECODERS, NONLINEAR_LEVELS, gguf_values
from backend.compat import call_torch, map_tensors, wrapper_tensor

# fmt: off
FOUR_BITS: Mapping[str, tuple[float, ...]] = MappingProxyType({
    "NF4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "FP4": (
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
        0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
    ),
})
# fmt: on
"""What the 4 bits of a weight stand for in the formats of bitsandbytes, as parts of its block's largest value."""


def four_bit_values(packed: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The values of bytes that hold two indexes of ``levels`` each, the first in the upper half; the last side of the
    result is twice as long."""
    return levels[torch.stack([packed >> 4, packed & 15], dim=-1).int()].flatten(-2)


def scaled(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``values`` (rows x columns) times scales (rows or 1 x one for each group of neighbours). The last group may be
    shorter."""
    columns, groups = values.shape[1], scales.shape[1]
    if groups > 1:
        scales = scales.repeat_interleave(-(-columns // groups), dim=1)[:, :columns]
    return values * scales


def levels_of(format: str, device: torch.device) -> torch.Tensor:
    """What the bits of a weight stand for, in float32; empty where they are numbers themselves."""
    levels = NONLINEAR_LEVELS if format in LEVEL_DECODERS else FOUR_BITS.get(format, ())
    return torch.tensor(levels, dtype=torch.float32, device=device)


def row_values(format: str, parts: Sequence[torch.Tensor], levels: torch.Tensor) -> torch.Tensor:
    """The values of some rows in float32. ``parts`` have a row for each: the weights as stored, and any scales."""
    if format in GGUF_BLOCKS:
        return gguf_values(parts[0], format, levels)
    if format in FOUR_BITS:
        return scaled(four_bit_values(parts[0], levels), parts[1])
    return scaled(parts[0].float(), parts[1]) if len(parts) > 1 else parts[0].float()


def dequantize(
    format: str, parts: Sequence[torch.Tensor], levels: torch.Tensor, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """The values of a whole matrix in ``dtype``, rows x columns. ``levels`` are :func:`levels_of` the format: who
    calls this often keeps them on the device."""
    rows = parts[0].shape[0]
    step = max(1, WEIGHTS_AT_ONCE // max(1, columns))
    if rows <= step:
        return row_values(format, parts, levels).to(dtype)
    values = torch.empty(rows, columns, dtype=dtype, device=parts[0].device)
    for start in range(0, rows, step):
        values[start : start + step] = row_values(format, [part[start : start + step] for part in parts], levels)
    return values


class PackedWeight(torch.Tensor):
    """A matrix in the few bits that a file has it in. Each of its ``parts`` has a row for every row of the matrix, so
    rows can be taken, joined and copied as they are. Whatever else is done with it is done with its values.

    It has the shape that the model knows, and ``dtype`` is the type of its values.
    """

    format: str
    parts: tuple[torch.Tensor, ...]

    @staticmethod
    def __new__(
        cls, format: str, parts: Sequence[torch.Tensor], columns: int, dtype: torch.dtype
    ) -> PackedWeight:  # nn.Parameter makes others from this one, without __init__
        weight: PackedWeight = wrapper_tensor(cls, (parts[0].shape[0], columns), dtype, parts[0].device)
        weight.format, weight.parts = format, tuple(parts)
        return weight

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PackedWeight({self.format}, {tuple(self.shape)}, {self.dtype})"

    def values(self) -> torch.Tensor:
        """The values as an ordinary tensor."""
        levels = levels_of(self.format, self.device)
        return dequantize(self.format, self.parts, levels, self.shape[1], self.dtype)

    def rows(self, take: Callable[[torch.Tensor], torch.Tensor]) -> PackedWeight:
        """The rows that ``take`` takes of any part."""
        return PackedWeight(self.format, [take(part) for part in self.parts], self.shape[1], self.dtype)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return call_torch(func, args, kwargs or {})

    @classmethod  # torch's own stub has no function among the arguments
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kept = _of_rows(func, args)
        if kept is not None:
            return kept
        arguments, options = map_tensors(_values, (tuple(args), dict(kwargs or {})))
        return func(*arguments, **options)


def _values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.values() if isinstance(tensor, PackedWeight) else tensor


def _of_rows(func: Any, args: Sequence[Any]) -> Any:
    """The result of an operation that leaves rows whole; None for any other."""
    aten = torch.ops.aten
    weight = args[0] if args else None
    if func is aten.cat.default and (len(args) == 1 or args[1] == 0):
        return _joined(args[0])
    if not isinstance(weight, PackedWeight):
        return None
    if func is aten.detach.default:
        return weight.rows(torch.Tensor.detach)
    if func is aten.clone.default:
        return weight.rows(torch.Tensor.clone)
    if func in (aten.split.Tensor, aten.split_with_sizes.default) and (len(args) == 2 or args[2] == 0):
        pieces = zip(*(part.split(args[1]) for part in weight.parts))
        return [PackedWeight(weight.format, piece, weight.shape[1], weight.dtype) for piece in pieces]
    if func is aten.slice.Tensor and (len(args) == 1 or args[1] == 0):
        return weight.rows(lambda part: func(part, 0, *args[2:]))
    return None


def _joined(weights: Sequence[torch.Tensor]) -> PackedWeight | None:
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    first = packed[0]
    alike = {(weight.format, weight.dtype, tuple(part.shape[1] for part in weight.parts)) for weight in packed}
    if len(packed) < len(weights) or len(alike) > 1:
        return None
    parts = [torch.cat(rows) for rows in zip(*(weight.parts for weight in packed))]
    return PackedWeight(first.format, parts, first.shape[1], first.dtype)


def unpack(module: nn.Module) -> nn.Module:
    """Replaces the packed weights that a module still has by their values, one after the other."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter, PackedWeight):
                setattr(part, name, nn.Parameter(parameter.values(), requires_grad=False))
    return module
