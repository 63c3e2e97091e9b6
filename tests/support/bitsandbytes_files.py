"""Weights as bitsandbytes saves them.

The library itself is no requirement of the tests: where it is installed, diffusers and transformers import it too, with
warnings and a slower start. So what it made once lies beside this file, with the values that it computed:
``PYTHONPATH=tests:FOLDER_WITH_BITSANDBYTES python -m support.bitsandbytes_files`` (version 0.50.2) writes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
MADE = Path(__file__).with_suffix(".safetensors")
SHAPES = ((24, 128), (7, 24), (3, 5))
WEIGHT = torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(1)) * 0.05
EXPECTED = "expected"
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Of the paper (Dettmers et al. 2023, QLoRA, appendix E)."""
BLOCK = 64


def key(format: str, block: int, nested: bool, shape: tuple[int, int]) -> str:
    return f"{format}/{block}/{'nested' if nested else 'flat'}/{shape[0]}x{shape[1]}"


def made(name: str) -> tuple[Tensors, torch.Tensor]:
    """A weight "a.weight" as the library saved it, and the values that it computed from it."""
    tensors = {key.removeprefix(f"{name}/"): one for key, one in load_file(MADE).items() if key.startswith(f"{name}/")}
    return tensors, tensors.pop(EXPECTED)


def nf4_parts(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """A weight in NF4 without nested scales, by what follows its name, and its values. For weights whose size is a
    multiple of the block of 64."""
    levels = torch.tensor(NF4_LEVELS)
    blocks = weight.float().reshape(-1, BLOCK)
    largest = blocks.abs().amax(1)
    nearest = (blocks[:, :, None] / largest[:, None, None] - levels).abs().argmin(2)
    pairs = nearest.to(torch.uint8).reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(weight.shape)}
    parts = {
        "": (pairs[:, :1] * 16 + pairs[:, 1:]).contiguous(),
        ".absmax": largest,
        ".quant_map": levels,
        ".quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return parts, (levels[nearest] * largest[:, None]).reshape(weight.shape)


def main() -> None:
    import bitsandbytes.functional as bnb

    found: Tensors = {}
    for format in ("nf4", "fp4"):
        for block in (64, 128):
            for nested in (False, True):
                for rows, columns in SHAPES:
                    values = WEIGHT.flatten()[: rows * columns].reshape(rows, columns).contiguous()
                    packed, state = bnb.quantize_4bit(
                        values, quant_type=format, blocksize=block, compress_statistics=nested
                    )
                    parts = {f"a.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
                    parts |= {"a.weight": packed, EXPECTED: bnb.dequantize_4bit(packed, state)}
                    own = key(format, block, nested, (rows, columns))
                    found |= {f"{own}/{name}": part.clone().contiguous() for name, part in parts.items()}
    stored, largest, _ = bnb.int8_vectorwise_quant(WEIGHT.half())
    found |= {"int8/a.weight": stored, "int8/a.SCB": largest}
    found["int8/a.weight_format"] = torch.zeros((), dtype=torch.uint8)
    found[f"int8/{EXPECTED}"] = bnb.int8_vectorwise_dequant(stored, largest)
    save_file(found, MADE)


if __name__ == "__main__":
    main()
