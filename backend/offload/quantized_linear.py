"""Linear layers whose weights are stored in 8 or 4 bits: half or a quarter of the memory.

"fp8" is e4m3 with one scale a row, so that small weights keep their digits (e4m3 has none left below 0.002). "nf4" is
the format of QLoRA (Dettmers et al., https://arxiv.org/abs/2305.14314, 2023), as bitsandbytes has it. Both are
dequantized in ``forward``, which costs a cast a layer. "fp8_compute" stores what "fp8" does and also multiplies in fp8.

A forward changes nothing of the layer: whatever it computes is a local tensor. So one model may be used by several
threads, and its blocks can be compiled. All that a layer stores is a buffer, so a quantized model is moved and streamed
like any other, and an adapter (LoRA) is added to its output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional

from backend.checkpoints.packed_weight import FOUR_BITS
from backend.compat import scaled_mm
from backend.offload.placements import block_modules
from backend.planning.checkpoint_sizes import MODULATION

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
SMALLEST = 1e-30
"""In place of a largest value of 0, so that nothing is divided by it."""
NF4_BLOCK = 64
"""Neighbouring weights of a row that share a scale."""
NF4_LEVELS = FOUR_BITS["NF4"]
"""Quantiles of a normal distribution between -1 and 1, zero among them (appendix E of the paper)."""


class QuantizedLinear(nn.Linear, ABC):
    """A copy of ``linear`` with its weight quantized. It computes in ``dtype``; the bias stays as it is.

    ``stored`` are the tensors that :meth:`encode` gave for this weight before, by name; without them it is quantized
    now, and they are where ``linear`` is. All of them are buffers.
    """

    multiple_of = (1, 1)
    """What rows (outputs) and columns (inputs) of the weight must be multiples of."""
    parts: tuple[str, ...] = ("quantized", "scale")
    """The names of the tensors that it stores."""
    keeps_modulations = False
    """Whether the layers of ``MODULATION`` stay as they are."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, stored: Mapping[str, torch.Tensor] | None = None) -> None:
        nn.Module.__init__(self)  # nn.Linear's would allocate and fill a whole weight
        self.in_features, self.out_features, self.dtype = linear.in_features, linear.out_features, dtype
        self.register_parameter("bias", linear.bias)
        for name, tensor in (self.encode(linear.weight.detach()) if stored is None else stored).items():
            self.register_buffer(name, tensor)

    @classmethod
    def takes(cls, path: str, linear: nn.Linear) -> bool:
        """Whether the layer of a block that has this name can be quantized so."""
        rows, columns = cls.multiple_of
        fits = linear.out_features % rows == 0 and linear.in_features % columns == 0
        return fits and not (cls.keeps_modulations and MODULATION.search(path))

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Has the shape and device of the weight and the type that the layer computes in, but no values: all are NaN,
        and no memory is taken. T5 and adapters ask for these; :meth:`dequantize` returns the values."""
        device = next(self.buffers(recurse=False)).device
        return torch.full((), math.nan, dtype=self.dtype, device=device).expand(self.out_features, self.in_features)

    @staticmethod
    @abstractmethod
    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """A weight, rows x columns, to the tensors to store, by name; on its device."""

    @abstractmethod
    def dequantize(self) -> torch.Tensor:
        """The weight as a new tensor, rows x columns, in the type that the layer computes in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.dequantize(), self.bias)


class Fp8Linear(QuantizedLinear):
    """Every row is scaled to the whole range of e4m3. ``scale``, rows x 1, is float32."""

    quantized: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        weight = weight.float()
        scale = weight.abs().amax(dim=1, keepdim=True).div_(FP8_MAX)
        scale = torch.where(scale == 0, 1, scale)  # a row of zeros stays one
        return {"quantized": (weight / scale).to(FP8), "scale": scale}

    def dequantize(self) -> torch.Tensor:
        return self.quantized.to(self.dtype).mul_(self.scale.to(self.dtype))


class Fp8ComputeLinear(Fp8Linear):
    """Multiplies in fp8: every row of the input is scaled to the range of e4m3 too, each time anew.

    CUDA from compute capability 8.9 on does so in bfloat16 only; a CPU also in float32.
    """

    multiple_of = (16, 16)  # of CUDA's kernels
    keeps_modulations = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.unsqueeze(0).flatten(0, -2)
        # of its own type, and without abs(): each would take once or twice the memory of the input
        largest = torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True)
        stretch = FP8_MAX / largest.clamp(min=2 * FP8_MAX / torch.finfo(rows.dtype).max)
        quantized = (rows * stretch).to(FP8).contiguous()
        product = scaled_mm(quantized, 1 / stretch.float(), self.quantized, self.scale, self.bias, rows.dtype)
        return product.unflatten(0, input.shape[:-1]) if input.dim() > 1 else product.squeeze(0)


class Nf4Linear(QuantizedLinear):
    """Every block of 64 weights is scaled to -1..1 and rounded to 16 levels; a byte holds two weights."""

    multiple_of = (1, NF4_BLOCK)
    quantized: torch.Tensor
    scale: torch.Tensor
    pairs: torch.Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, stored: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__(linear, dtype, stored)
        # both weights of a byte are looked up at once
        levels, byte = torch.tensor(NF4_LEVELS), torch.arange(256)
        pairs = torch.stack([levels[byte % 16], levels[byte // 16]], dim=1).to(self.quantized.device, dtype)
        self.register_buffer("pairs", pairs, persistent=False)

    @staticmethod
    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        blocks = weight.float().unflatten(1, (-1, NF4_BLOCK))
        scale = blocks.abs().amax(dim=2, keepdim=True)
        levels = torch.tensor(NF4_LEVELS, device=weight.device)
        halfway = (levels[1:] + levels[:-1]) / 2
        nearest = torch.bucketize(blocks / scale.clamp(min=SMALLEST), halfway, out_int32=True).to(torch.uint8)
        nearest = nearest.flatten(1)
        return {"quantized": nearest[:, ::2] + 16 * nearest[:, 1::2], "scale": scale.squeeze(2)}

    def dequantize(self) -> torch.Tensor:
        weight: torch.Tensor = functional.embedding(self.quantized.int(), self.pairs).flatten(1)
        blocks = weight.unflatten(1, (-1, NF4_BLOCK))
        blocks.mul_(self.scale.unsqueeze(2).to(weight.dtype))  # in place: the view shares the new weight's memory
        return weight


FORMATS: Mapping[str, type[QuantizedLinear]] = MappingProxyType(
    {"fp8": Fp8Linear, "fp8_compute": Fp8ComputeLinear, "nf4": Nf4Linear}
)


def why_no_products(device: torch.device, dtype: torch.dtype) -> str:
    """Why a device does not multiply in fp8; "" where it does. One small product is tried."""
    layer = Fp8ComputeLinear(nn.Linear(32, 32, device=device, dtype=dtype), dtype)
    try:
        with torch.inference_mode():
            layer(torch.zeros(32, 32, device=device, dtype=dtype))
    except (RuntimeError, ValueError, NotImplementedError) as refusal:
        return str(refusal).partition("\n")[0]
    return ""


def quantize(module: nn.Module, name: str, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """Replaces the linear layers inside of a model's blocks by ``FORMATS[name]``, computing in ``dtype``.

    What lies outside of the blocks stays as it is, and so do layers that the format does not take. Weights are rounded
    on ``device``, one layer at a time, which gives the same bits everywhere; the model stays where it is.
    """
    kind = FORMATS[name]
    for path, layer in quantizable(module, kind):
        weight = layer.weight.detach()
        try:
            encoded = kind.encode(weight.to(device or weight.device))
        except torch.OutOfMemoryError:  # other models fill the device: a slower start is better than none
            encoded = kind.encode(weight)
        stored = {name: tensor.to(weight.device) for name, tensor in encoded.items()}
        replace_layer(module, path, kind(layer, dtype, stored))
    return module


def quantizable(module: nn.Module, kind: type[QuantizedLinear]) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a model's blocks that ``kind`` takes, with their paths. Each may be replaced before the next
    is asked for."""
    inside = {id(part) for block in block_modules(module) for part in block.modules()}
    # names, not layers: a list of layers would keep all the old weights until the end
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.Linear) and id(part) in inside]
    for path in paths:
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        if kind.takes(path, layer):
            yield path, layer


def replace_layer(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts ``layer`` in the place of a module's part."""
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, layer)
