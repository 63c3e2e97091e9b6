"""Which checkpoint loader is the fastest here? ``python -m bench.speed.loading [--gigabytes 3] [--runs 3] [--json]``.

A random Flux transformer of that size is written in shards. Every loader reads it in a process of its own, without its
imports, until every page of every weight was touched: once from disk (the files are dropped from the page cache first)
and once from the page cache. Peak memory is relative to the size of the files. Runs alternate. Loaders that are not
installed are reported as absent: ``pip install runai-model-streamer humanize fastsafetensors``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from backend.checkpoints.folder_files import shard_files
from backend.checkpoints.loader import assign_tensors, load_diffusers_module
from backend.checkpoints.page_cache import is_cached
from backend.core.settings import ROOT
from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before diffusers

from diffusers import FluxTransformer2DModel  # noqa: E402

CONFIG: Mapping[str, Any] = MappingProxyType({"num_layers": 2, "num_single_layers": 6, "guidance_embeds": True})
BYTES_BY_HEADS = 5.32e6
"""Bytes of that transformer in bf16, over the square of its number of attention heads."""
PATIENCE = 40
"""Times to try to get a file out of the page cache, half a second apart."""
WARM_TURNS = 5
"""Of every run: what takes a tenth of a second is told apart by several."""
NEEDS: Mapping[str, str] = MappingProxyType(
    {"Run:ai streamer": "runai_model_streamer", "fastsafetensors": "fastsafetensors"}
)


def write_checkpoint(folder: Path, size: float) -> int:
    """A random transformer of about ``size`` bytes in a diffusers folder; returns the bytes of its files."""
    heads = max(1, round((size / BYTES_BY_HEADS) ** 0.5))
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_attention_heads=heads, **CONFIG)
    nn.Module.to(model, torch.bfloat16)  # diffusers' own warns of what a random model does not have
    model.to_empty(device="cpu")
    values = torch.empty(2**20, dtype=torch.bfloat16).uniform_(
        -0.02, 0.02
    )  # copied, because drawing all of them takes minutes
    for parameter in model.parameters():
        for part in parameter.data.view(-1).split(values.numel()):
            part.copy_(values[: part.numel()])
    model.save_pretrained(folder, max_shard_size="1GB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def from_pretrained(folder: Path) -> nn.Module:
    module: nn.Module = FluxTransformer2DModel.from_pretrained(
        folder,
        torch_dtype=torch.bfloat16,
        local_files_only=True,
        trust_remote_code=False,
    )
    return module


def ours(folder: Path) -> nn.Module:
    return load_diffusers_module(FluxTransformer2DModel, folder, torch.bfloat16)


def safetensors_with(backend: str) -> Callable[[Path], nn.Module]:
    def load(folder: Path) -> nn.Module:
        tensors: dict[str, torch.Tensor] = {}
        for file in shard_files(folder):
            tensors |= load_file(file, backend=backend)
        return module_of(folder, tensors)

    return load


def runai_streamer(folder: Path) -> nn.Module:
    from runai_model_streamer import SafetensorsStreamer  # type: ignore[import-not-found]

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(file) for file in shard_files(folder)])
        return module_of(folder, dict(streamer.get_tensors()))


def fast_safetensors(folder: Path) -> nn.Module:
    from fastsafetensors import fastsafe_open  # type: ignore[import-not-found]

    with fastsafe_open([str(file) for file in shard_files(folder)], nogds=True, device="cpu") as opened:
        return module_of(folder, {name: opened.get_tensor(name) for name in opened.keys()})


LOADERS: Mapping[str, Callable[[Path], nn.Module]] = MappingProxyType(
    {
        "from_pretrained": from_pretrained,
        "ours": ours,
        "safetensors mmap": safetensors_with("mmap"),
        "safetensors pread": safetensors_with("pread"),
        "Run:ai streamer": runai_streamer,
        "fastsafetensors": fast_safetensors,
    }
)


def module_of(folder: Path, tensors: dict[str, torch.Tensor]) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = FluxTransformer2DModel.from_config(
            FluxTransformer2DModel.load_config(folder, local_files_only=True)
        )
    assign_tensors(module, tensors, folder.name)
    return module


def touch(module: nn.Module) -> float:
    """Reads a byte of every page of every weight; the sum is the same for every loader."""
    return sum(
        float(tensor.view(torch.uint8).flatten()[:: os.sysconf("SC_PAGE_SIZE")].sum())
        for tensor in module.state_dict().values()
    )


def peak_memory() -> int:
    """Bytes that this process held at most since :func:`forget_peak` (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def forget_peak() -> int:
    """Starts the count of the peak anew, and returns what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def drop_from_cache(folder: Path) -> None:
    """The files have to be read from the disk next. Raises RuntimeError when they stay in the page cache."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            for _ in range(PATIENCE):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                if not is_cached(descriptor, 0, os.fstat(descriptor).st_size):
                    break
                time.sleep(0.5)  # a process that ends gives its pages back a little later
            else:
                raise RuntimeError(f"{file.name} stays in the page cache; somebody else uses it")
        finally:
            os.close(descriptor)


def bring_into_cache(folder: Path) -> None:
    """All of the files are in memory, whatever the loaders before have left there."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(2**24):
                pass


def work(loader: str, folder: Path) -> dict[str, float]:
    """Loads once: the part that runs in a process of its own."""
    if loader in NEEDS:
        importlib.import_module(NEEDS[loader])
    before, begin = forget_peak(), time.perf_counter()
    module = LOADERS[loader](folder)
    checksum = touch(module)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_bytes": peak_memory() - before, "checksum": checksum}


def measure(loader: str, folder: Path) -> dict[str, float]:
    """:func:`work` in a new process, forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.speed.loading"])
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        return processes.submit(work, loader, folder).result()


def compare(folder: Path, size: int, runs: int) -> list[dict[str, Any]]:
    """One row a loader: medians of the seconds, the largest peak over the size of the files."""
    present = [name for name in LOADERS if name not in NEEDS or importlib.util.find_spec(NEEDS[name])]
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {"cold": [], "warm": []} for name in present}
    for _ in range(runs):
        for name in present:
            drop_from_cache(folder)
            found[name]["cold"].append(measure(name, folder))
        bring_into_cache(folder)
        for name in present * WARM_TURNS:
            found[name]["warm"].append(measure(name, folder))
    sums = {one["checksum"] for states in found.values() for ones in states.values() for one in ones}
    if len(sums) != 1:
        raise RuntimeError(f"the loaders do not agree about the weights: {sums}")
    rows: list[dict[str, Any]] = []
    for name in LOADERS:
        if name not in present:
            rows.append({"loader": name, "absent": True})
            continue
        seconds = {
            f"{state}_seconds": round(statistics.median(one["seconds"] for one in ones), 3)
            for state, ones in found[name].items()
        }
        peaks = {
            f"{state}_peak": round(max(one["peak_bytes"] for one in ones) / size, 3)
            for state, ones in found[name].items()
        }
        rows.append({"loader": name, **seconds, **peaks})
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'loader':<18} {'cold s':>8} {'warm s':>8} {'cold peak':>10} {'warm peak':>10}"]
    for row in rows:
        if "absent" in row:
            lines.append(f"{row['loader']:<18} {'absent':>8}")
        else:
            lines.append(
                f"{row['loader']:<18} {row['cold_seconds']:>8.2f} {row['warm_seconds']:>8.2f} "
                f"{row['cold_peak']:>10.2f} {row['warm_peak']:>10.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT,
        help="on the disk that is to be measured; the checkpoint in it is deleted at the end",
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["RUNAI_STREAMER_MEMORY_LIMIT"] = "-1"  # without its limit it holds a checkpoint once, as the others do
    with tempfile.TemporaryDirectory(prefix="loading-", dir=arguments.folder) as folder:
        size = write_checkpoint(Path(folder), arguments.gigabytes * 1e9)
        rows = compare(Path(folder), size, arguments.runs)
    if arguments.json:
        print(json.dumps({"bytes": size, "runs": arguments.runs, "loaders": rows}))
    else:
        print(
            f"{size / 1e9:.2f} GB, median of {arguments.runs} runs; peak memory over the size of the "
            f"files\n{as_text(rows)}"
        )


if __name__ == "__main__":
    main()
