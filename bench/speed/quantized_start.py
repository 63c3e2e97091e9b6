"""What the cache of quantized weights saves at a start: ``python -m bench.speed.quantized_start [--gigabytes 2]
[--format fp8] [--runs 3]``.

A transformer of FLUX.1's class with random weights of that size is written once. Every run then reads and rounds it as
the first start does, writes the entry, and reads it as later starts do. All files are in the page cache. The bits of
both are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from backend.checkpoints.loader import load_diffusers_module
from backend.checkpoints.packed_weight import unpack
from backend.devices.torchvision_ops import ensure_torchvision_operators
from backend.offload.quantized_cache import QuantizedCache, content_key
from backend.offload.quantized_linear import FORMATS, quantize
from bench.speed.loading import write_checkpoint
from bench.support.markdown import table

ensure_torchvision_operators()  # before diffusers

from diffusers import FluxTransformer2DModel  # noqa: E402

DTYPE = torch.bfloat16


def timed(run: Callable[[], nn.Module]) -> tuple[float, nn.Module]:
    begin = time.perf_counter()
    module = run()
    return time.perf_counter() - begin, module


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    tensors = [module.state_dict() for module in (a, b)]
    return all(torch.equal(*(some[name].reshape(-1).view(torch.uint8) for some in tensors)) for name in tensors[0])


def measure(folder: Path, name: str, runs: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = {"rounded": [], "from the cache": []}

    def make() -> nn.Module:
        return unpack(quantize(load_diffusers_module(FluxTransformer2DModel, folder, DTYPE), name, DTYPE))

    key = content_key([folder], name)
    cache = QuantizedCache([folder.parent / "cache"], 10**12, smallest=0, reserved=0)
    cache.module(key, make)
    for _ in range(runs):
        passed, made = timed(make)
        seconds["rounded"].append(passed)
        passed, found = timed(lambda: cache.module(content_key([folder], name), make))
        seconds["from the cache"].append(passed)
        assert same_bits(made, found)
        del made, found
    entry = cache.folders[0] / f"{key}.safetensors"
    return {
        "format": name,
        "model GB": round(sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9, 2),
        "entry GB": round(entry.stat().st_size / 1e9, 2),
        **{f"{way}, s": round(statistics.median(all_seconds), 2) for way, all_seconds in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--format", choices=list(FORMATS), action="append", default=[])
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "transformer"
        folder.mkdir()
        write_checkpoint(folder, arguments.gigabytes * 1e9)
        print(table([measure(folder, name, arguments.runs) for name in arguments.format or FORMATS]))


if __name__ == "__main__":
    main()
