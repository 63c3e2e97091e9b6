"""The values of weights in safetensors and GGUF files, however they are stored there. Files are mapped, not copied."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from backend.checkpoints.encodings import Encoding
from backend.checkpoints.entries import FP8_FORMATS, GGUF_BLOCKS, Entry
from backend.checkpoints.folder_files import RESTORE
from backend.checkpoints.gguf_file import is_gguf
from backend.checkpoints.gguf_types import gguf_values
from backend.checkpoints.header import Header
from backend.checkpoints.packed_weight import FOUR_BITS, PackedWeight, four_bit_values, scaled
from backend.core.errors import WeightsError

PLAIN = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}
"""The formats of GGUF files that torch has too."""


class StoredWeights:
    """Reads the weights of a header one by one. An open file stays open as long as this lives."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._opened = cache(_open)

    def weight(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A weight by name: quantized matrices as :class:`PackedWeight`, other floating point numbers in ``dtype``.

        Raises :class:`WeightsError` that names the file where it is damaged.
        """
        encoding, entry = self._header.encodings.get(name), self._header.entries[name]
        try:
            if encoding:
                return self._encoded(encoding, dtype)
            tensor = self._tensor(name)
            if entry.format in GGUF_BLOCKS:
                return _gguf_weight(tensor, entry, dtype)
            if entry.format in FP8_FORMATS and tensor.dim() == 2:
                return PackedWeight(entry.format, [tensor], tensor.shape[1], dtype)
            return tensor.to(dtype) if tensor.is_floating_point() else tensor
        except (SafetensorError, OSError, RuntimeError) as problem:
            label = f"{entry.file.parent.name}/{entry.file.name}"
            raise WeightsError(f"{label} is damaged or cut off; {RESTORE}") from problem

    def _tensor(self, name: str) -> torch.Tensor:
        """One tensor as its file has it; a quantized one of a GGUF file as bytes."""
        entry = self._header.entries[name]
        opened = self._opened(entry.file)
        if not isinstance(opened, torch.Tensor):
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor
        data = opened[entry.start : entry.start + entry.bytes]
        return data if entry.format in GGUF_BLOCKS else data.view(PLAIN[entry.format]).view(entry.shape)

    def _encoded(self, encoding: Encoding, dtype: torch.dtype) -> torch.Tensor:
        parts = {part: self._tensor(name) for part, name in encoding.parts.items()}
        if encoding.format in FOUR_BITS:
            return _four_bit_weight(encoding, parts, dtype)
        weight = parts["weight"]
        scale = parts["scale"].float() if "scale" in parts else parts["absmax"] / 127
        if weight.dim() != 2:
            return (weight.float() * scale.view(-1, *[1] * (weight.dim() - 1))).to(dtype)
        rows = weight.shape[0]
        if scale.numel() == 1:
            scale = scale.reshape(1, 1).expand(rows, 1)
        elif scale.shape[0] != rows or scale.dim() == 1:
            by_row = scale.reshape(rows, 1) if scale.numel() == rows else scale
            scale = by_row.repeat_interleave(-(-rows // by_row.shape[0]), dim=0)[:rows]
        return PackedWeight(encoding.format, [weight, scale.contiguous()], weight.shape[1], dtype)


def _open(file: Path) -> Any:
    if is_gguf(file):
        return torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    return safe_open(file, framework="pt")


def _gguf_weight(data: torch.Tensor, entry: Entry, dtype: torch.dtype) -> torch.Tensor:
    weights, size = GGUF_BLOCKS[entry.format]
    columns = entry.shape[-1] if entry.shape else 1
    if len(entry.shape) == 2 and columns % weights == 0:
        return PackedWeight(entry.format, [data.view(-1, columns // weights * size)], columns, dtype)
    return gguf_values(data.view(1, -1), entry.format).view(entry.shape).to(dtype)


def _four_bit_weight(encoding: Encoding, parts: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    levels, absmax, packed = parts["quant_map"], parts["absmax"], parts["weight"].flatten()
    if encoding.nested_block:
        bytes_of = parts["nested_quant_map"][absmax.int()]
        largest = parts["nested_absmax"].repeat_interleave(encoding.nested_block)[: absmax.numel()]
        absmax = bytes_of * largest + encoding.nested_offset
    columns = encoding.shape[-1]
    usual = torch.equal(levels, torch.tensor(FOUR_BITS[encoding.format]))
    if usual and len(encoding.shape) == 2 and columns % encoding.block == 0:
        rows = encoding.shape[0]
        return PackedWeight(encoding.format, [packed.view(rows, -1), absmax.view(rows, -1)], columns, dtype)
    count = packed.numel() * 2
    values = scaled(
        four_bit_values(packed, levels).view(1, -1), absmax.repeat_interleave(encoding.block)[:count].view(1, -1)
    )
    return values.flatten()[: torch.Size(encoding.shape).numel()].view(encoding.shape).to(dtype)
