"""What a LoRA adds to the output of one layer. The layer's own weight stays as it is, however it is stored.

LoRA: Hu et al., https://arxiv.org/abs/2106.09685, 2021. LoHa and LoKr: Yeh et al. (LyCORIS),
https://arxiv.org/abs/2309.14859, 2023. DoRA: Liu et al., https://arxiv.org/abs/2402.09353, 2024.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from backend.offload.quantized_linear import QuantizedLinear

Layer = nn.Linear | nn.Conv2d


def layer_shape(layer: Layer) -> tuple[int, ...]:
    """Of the weight, outputs first, however it is stored."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


def product(layer: Layer, weight: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """What a layer with this weight and without a bias makes of the input."""
    weight = weight.to(input.dtype)
    if isinstance(layer, nn.Linear):
        return functional.linear(input, weight)
    return functional.conv2d(input, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@dataclass(eq=False)
class Delta(ABC):
    """A change of one layer, at strength 1. All fields that are tensors move together."""

    @abstractmethod
    def added(self, layer: Layer, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What is added to the layer's ``output`` for this ``input``."""

    @abstractmethod
    def matrix(self) -> torch.Tensor:
        """What would be added to the layer's weight, in its shape."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for field in fields(self):
            value = getattr(self, field.name)
            found += value.tensors if isinstance(value, Delta) else [value] if isinstance(value, torch.Tensor) else []
        return found

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """A copy with other tensors, in the order of :attr:`tensors`."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Delta):
                changed[field.name] = value.mapped(change)
            elif isinstance(value, torch.Tensor):
                changed[field.name] = change(value)
        return replace(self, **changed)


@dataclass(eq=False)
class LowRank(Delta):
    """LoRA. ``down`` is rank x inputs (and the kernel's sides), ``up`` outputs x rank."""

    down: torch.Tensor
    up: torch.Tensor

    def added(self, layer: Layer, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        inner, up = product(layer, self.down, input), self.up.to(input.dtype)
        if isinstance(layer, nn.Linear):
            return functional.linear(inner, up)
        return functional.conv2d(inner, up[:, :, None, None])

    def matrix(self) -> torch.Tensor:
        return contracted(self.up, self.down)


@dataclass(eq=False)
class Whole(Delta):
    """The difference of the whole weight."""

    weight: torch.Tensor

    def added(self, layer: Layer, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return product(layer, self.matrix(), input)

    def matrix(self) -> torch.Tensor:
        return self.weight


@dataclass(eq=False)
class Composed(Delta):
    """A weight of ``shape`` that is made of smaller ones in every forward: ``strength`` times :meth:`_composed`, of
    which the layer has the ``rows``."""

    shape: tuple[int, ...]
    strength: float
    rows: tuple[tuple[int, int], ...]
    first: torch.Tensor
    second: torch.Tensor

    @abstractmethod
    def _composed(self) -> torch.Tensor: ...

    def added(self, layer: Layer, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return product(layer, self.matrix(), input)

    def matrix(self) -> torch.Tensor:
        return chosen_rows(self.strength * self._composed(), self.rows).reshape(self.shape)


@dataclass(eq=False)
class Kronecker(Composed):
    """LoKr: the Kronecker product of two matrices; the second one may have a kernel's sides."""

    def _composed(self) -> torch.Tensor:
        first = self.first.reshape(self.first.shape + (1,) * (self.second.ndim - self.first.ndim))
        composed: torch.Tensor = torch.kron(first, self.second.contiguous())
        return composed


@dataclass(eq=False)
class Hadamard(Composed):
    """LoHa: two low-rank matrices, ``first @ first_down`` and ``second @ second_down``, multiplied element by
    element."""

    first_down: torch.Tensor
    second_down: torch.Tensor

    def _composed(self) -> torch.Tensor:
        one, other = (
            contracted(up, down) for up, down in ((self.first, self.first_down), (self.second, self.second_down))
        )
        return one * other


@dataclass(eq=False)
class Biased(Delta):
    """Another change, or none, and a change of the bias."""

    inner: Delta | None
    bias: torch.Tensor

    def added(self, layer: Layer, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        bias = self.bias.to(output.dtype)
        bias = bias if isinstance(layer, nn.Linear) else bias[:, None, None]
        return bias.expand_as(output) if self.inner is None else self.inner.added(layer, input, output) + bias

    def matrix(self) -> torch.Tensor:
        return torch.zeros(()) if self.inner is None else self.inner.matrix()


@dataclass(eq=False)
class Dora(Delta):
    """DoRA: the changed weight's rows (or columns, of inputs) are scaled to the lengths in ``magnitude``, which is one
    vector. By how much depends on the layer's own weight, so ``gain`` is computed when the layer first runs."""

    inner: Delta
    magnitude: torch.Tensor
    of_inputs: bool
    gain: torch.Tensor | None = None

    def added(self, layer: Layer, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.gain is None:
            self.gain = self._gain(layer)
        gain = self.gain.to(input.dtype)
        gain = gain if isinstance(layer, nn.Linear) else gain[:, None, None]
        if self.of_inputs:
            scaled = gain * input
            changed = product(layer, own_weight(layer), scaled - input)
            return changed + self.inner.added(layer, scaled, output)
        plain = output
        if layer.bias is not None:
            plain = output - (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])
        return (gain - 1) * plain + gain * self.inner.added(layer, input, output)

    def _gain(self, layer: Layer) -> torch.Tensor:
        """By how much each row, or column, is scaled."""
        weight = own_weight(layer).float()
        changed = weight + self.inner.matrix().float()
        kept = 1 if self.of_inputs else 0
        length = torch.linalg.vector_norm(changed, dim=[one for one in range(changed.ndim) if one != kept])
        gain: torch.Tensor = self.magnitude.float() / length
        return gain

    def matrix(self) -> torch.Tensor:
        raise NotImplementedError("depends on the layer's own weight")


def contracted(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The product of outputs x rank and rank x inputs (and a kernel's sides)."""
    return torch.tensordot(up, down, dims=1)  # type: ignore[no-any-return]


def own_weight(layer: Layer) -> torch.Tensor:
    """The values of a layer's weight, wherever and however it is stored."""
    return layer.dequantize() if isinstance(layer, QuantizedLinear) else layer.weight.detach()


def chosen_rows(tensor: torch.Tensor, rows: Sequence[tuple[int, int]]) -> torch.Tensor:
    """These ranges of the tensor's rows, one behind the other; all without a range."""
    return torch.cat([tensor[begin:end] for begin, end in rows]) if rows else tensor
