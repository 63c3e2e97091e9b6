"""GGUF files, written by llama.cpp's own package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch


def gguf_type(format: str) -> Any:
    return gguf.GGMLQuantizationType[format]


def write_gguf(path: Path, tensors: Mapping[str, tuple[torch.Tensor, str]], architecture: str = "flux") -> Path:
    """Tensors with the format of each. Bytes (uint8) are written as they are, values are quantized first."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, (tensor, format) in tensors.items():
        data = tensor.numpy()
        if tensor.dtype != torch.uint8:
            data = gguf.quants.quantize(data, gguf_type(format))
        writer.add_tensor(name, data, raw_dtype=gguf_type(format))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_reference(data: torch.Tensor, format: str) -> torch.Tensor:
    """The values of rows of bytes as llama.cpp's package has them."""
    return torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf_type(format)).copy())


def quantized(values: torch.Tensor, format: str) -> torch.Tensor:
    """Values after a way through the format."""
    return torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), gguf_type(format)), gguf_type(format)).copy()
    )


def random_blocks(rows: int, blocks: int, format: str, seed: int = 0) -> torch.Tensor:
    """Rows of blocks with random bits; the scales, which are 16 bits each, are moderate numbers."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf_type(format)]
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (rows * blocks, size), generator=generator, dtype=torch.uint8)
    halves = {"Q2_K": (81, 83), "Q3_K": (109,), "Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,)}
    halves |= dict.fromkeys(("Q4_1", "Q5_1"), (1, 3))
    for upper in halves.get(format, (1,)):
        data[:, upper] = data[:, upper] % 32 + 16  # its exponent: from 2 to the power of -11 to -3
    return data.view(rows, -1)
