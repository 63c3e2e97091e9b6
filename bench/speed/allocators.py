"""Compares allocators of host memory on this load: ``python -m bench.speed.allocators [--runs 3] [--predictions 20]
[--json]``.

For every installed allocator (apt: libtcmalloc-minimal4, libjemalloc2, libmimalloc2.0), a process loads the embedded
models with every stage and makes predictions of changing sizes, batches and stages. Seconds of the set-up and of the
predictions, processor seconds of both, peak memory, and memory at the end; medians of alternating runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from backend.core.settings import ROOT, Settings

ALLOCATORS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "glibc": ("", {}),
    "glibc, trim threshold 128 KiB": ("", {"MALLOC_TRIM_THRESHOLD_": "131072"}),
    "tcmalloc": ("libtcmalloc_minimal.so.4", {}),
    "tcmalloc, release rate 10": ("libtcmalloc_minimal.so.4", {"TCMALLOC_RELEASE_RATE": "10"}),
    "tcmalloc, decommit": ("libtcmalloc_minimal.so.4", {"TCMALLOC_AGGRESSIVE_DECOMMIT": "t"}),
    "jemalloc": ("libjemalloc.so.2", {}),
    "mimalloc": ("libmimalloc.so.2", {}),
}
"""The library to preload ("" = the C library's own) and the variables."""

SHAPES = (("1:1", 1, 1.0), ("16:9", 2, 2.0), ("9:16", 1, 1.5), ("1:1", 4, 1.0), ("4:3", 1, 2.0))
"""Aspect ratio, number of pictures and factor of the enlargement, in turns."""


def library(name: str) -> str:
    """Where the linker finds a shared library; "" when it does not."""
    lines = subprocess.run(
        ["ldconfig", "-p"],
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return next((line.split()[-1] for line in lines.stdout.splitlines() if line.strip().startswith(name + " ")), "")


def load(predictions: int) -> dict[str, float]:
    """The work, in this process: seconds, and bytes of resident memory."""
    begin = time.perf_counter()
    from backend.devices.probe import process_memory
    from modules.app.service import start

    service = start(replace(Settings(), model="embedded", log_level="ERROR"))
    loaded = time.perf_counter()
    for number in range(predictions):
        ratio, outputs, scale = SHAPES[number % len(SHAPES)]
        inputs = {
            "prompt": f"two people, a man in a red shirt, number {number}",
            "aspect_ratio": ratio,
            "num_outputs": outputs,
            "scale": scale,
        }
        service.predict({**inputs, "num_inference_steps": 4, "seed": number}, lambda name, value: None)
    drawn = time.perf_counter()
    gc.collect()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "load_seconds": loaded - begin,
        "predict_seconds": drawn - loaded,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "final_bytes": process_memory(),
    }


def measured(name: str, predictions: int) -> dict[str, float] | None:
    """One run under an allocator, None when it is absent. The process is checked to have its library mapped."""
    wanted, variables = ALLOCATORS[name]
    path = library(wanted) if wanted else ""
    if wanted and not path:
        return None
    base = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_")}
    environment = {**base, "PYTHONPATH": str(ROOT), **({"LD_PRELOAD": path} if path else {}), **variables}
    command = [sys.executable, "-m", "bench.speed.allocators", "--load", wanted, "--predictions", str(predictions)]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def compare(runs: int, predictions: int) -> dict[str, dict[str, float] | None]:
    """Medians by allocator; None for those that are absent."""
    turns = [{name: measured(name, predictions) for name in ALLOCATORS} for _ in range(runs)]
    found: dict[str, dict[str, float] | None] = {}
    for name in ALLOCATORS:
        results = [result for turn in turns if (result := turn[name])]
        found[name] = (
            {key: statistics.median(result[key] for result in results) for key in results[0]} if results else None
        )
    return found


def table(found: Mapping[str, Mapping[str, float] | None]) -> str:
    """Markdown."""
    lines = [
        "| allocator | set-up s | predictions s | processor s | peak MB | at the end MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        cells = (
            "absent | | | | "
            if result is None
            else "{load_seconds:.2f} | {predict_seconds:.2f} | {cpu_seconds:.1f} | ".format(**result)
        )
        if result is not None:
            cells += f"{result['peak_bytes'] / 1e6:.0f} | {result['final_bytes'] / 1e6:.0f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--predictions", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", metavar="LIBRARY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load is not None:
        if arguments.load and arguments.load not in Path("/proc/self/maps").read_text():
            sys.exit(f"{arguments.load} is not in this process")
        print(json.dumps(load(arguments.predictions)))
        return
    found = compare(arguments.runs, arguments.predictions)
    print(json.dumps(found, indent=2) if arguments.json else table(found))


if __name__ == "__main__":
    main()
