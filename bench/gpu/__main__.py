"""Measures the package on a CUDA GPU, with random weights in the shapes of FLUX.1-dev. Nothing is downloaded.

    python -m bench.gpu [--folder weights/random-flux] [--only loading --only steps] [--out gpu.json]

The weights (34 GB) are made on the GPU and written to ``--folder`` once. Every measurement runs in a process of its
own, so that one failure does not stop the others: bandwidth and overlap of copies, attention kernels, loading from disk
and from the page cache, 28 steps at 1024 x 1024 by diffusers and by us with every technique, decoding, cards of 80, 48,
24, 16 and 12 GB with predicted and measured peaks and the bytes that a warm prediction moves, and the OOM fallback.
The result is one table with each figure beside its limit. ``--seconds`` ends in time: what matters most comes first,
and what is left out is named. ``bench/gpu/run.sh`` does all of it from a bare checkout and a folder of wheels.

``--small`` runs the same code on the CPU with the embedded models and emulated cards. Its figures say nothing about a
GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from backend.core.files import write_atomic
from backend.core.settings import ROOT
from backend.core.units import parse_bytes
from backend.devices.torchvision_ops import ensure_torchvision_operators
from bench.gpu.ground import Ground, Row

NAMES = ("steps", "caps", "decode", "attention", "copies", "fallback", "loading")
CAPS = ("80GB", "48GB", "24GB", "16GB", "12GB")
SMALL_CAPS = ("160MB", "80MB", "60MB")


def ground_of(arguments: argparse.Namespace) -> Ground:
    if arguments.small:
        folder = ROOT / "weights" / "embedded" / "flux"
        return Ground(
            torch.device("cpu"),
            "embedded",
            folder,
            256,
            2,
            tuple(map(parse_bytes, arguments.cap or SMALL_CAPS)),
            runs=1,
        )
    if not torch.cuda.is_available():
        sys.exit(
            "error: torch finds no CUDA device; run this on a machine with one, or give --small to try the code on "
            "the CPU"
        )
    total = torch.cuda.get_device_properties(0).total_memory
    caps = tuple(cap for cap in map(parse_bytes, arguments.cap or CAPS) if cap <= 1.1 * total)
    return Ground(torch.device("cuda"), str(arguments.folder.resolve()), arguments.folder, 1024, 28, caps)


def machine(ground: Ground) -> dict[str, str]:
    name = torch.cuda.get_device_name() if ground.on_gpu else platform.processor() or "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "diffusers": version("diffusers"),
    }


def measured(name: str, arguments: argparse.Namespace, seconds_left: float) -> list[Row]:
    """One measure in a process of its own; a failure becomes a row that says why, and so does the end of the time. What
    the process wrote before a failure lies beside ``--out``."""
    given = [
        *(("--small",) if arguments.small else ("--folder", str(arguments.folder))),
        *(part for cap in arguments.cap for part in ("--cap", cap)),
    ]
    command = [sys.executable, "-m", "bench.gpu", "--here", "--only", name, *given]
    if seconds_left <= 0:
        return [Row(name, "left out", float("nan"), "", note="no time was left")]
    try:
        finished = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=min(seconds_left, 10**6)
        )
    except subprocess.TimeoutExpired:
        return [Row(name, "left out", float("nan"), "", note="the time ended meanwhile")]
    if finished.returncode:
        lines = finished.stderr.strip().splitlines()
        note = lines[-1] if lines else f"code {finished.returncode}"
        if arguments.out:
            write_atomic(arguments.out.with_suffix(f".{name}.txt"), finished.stderr)
        return [Row(name, "failed", float("nan"), "", note=note)]
    return [Row(**row) for row in json.loads(finished.stdout.splitlines()[-1])]


def table(rows: list[Row]) -> str:
    lines = ["| Measure | | Value | Limit | |", "|---|---|---|---|---|"]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:.3g}"
        lines.append(f"| {row.measure} | {row.name} | {row.value:.3g} {row.unit} | {limit} | {row.note} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "weights" / "random-flux",
        help="where the random weights are, or are to be written",
    )
    parser.add_argument(
        "--only", action="append", choices=NAMES, default=[], help="this measure; may be given several times"
    )
    parser.add_argument(
        "--cap", action="append", default=[], help="a card to be tried, such as 24GB; may be given several times"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="end after so many; what is then missing is named"
    )
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    parser.add_argument("--small", action="store_true", help="on the CPU, with the embedded models")
    parser.add_argument("--here", action="store_true", help="in this process, printing JSON")
    arguments = parser.parse_args()
    begin = time.monotonic()
    ground = ground_of(arguments)
    ensure_torchvision_operators()  # before diffusers is imported, below
    names = arguments.only or NAMES
    if not arguments.small:
        from bench.gpu.checkpoint import FLUX_DEV, write_checkpoint

        write_checkpoint(arguments.folder, FLUX_DEV, ground.device)
    if arguments.here:
        from bench.gpu.measures import MEASURES

        print(json.dumps([asdict(row) for name in names for row in MEASURES[name](ground)]))
        return 0
    where, rows = machine(ground), []
    for name in names:
        rows += measured(name, arguments, arguments.seconds - (time.monotonic() - begin))
        if arguments.out:  # after every measure: what is there stays when the machine is taken away
            found = {"machine": where, "rows": [asdict(row) for row in rows]}
            write_atomic(arguments.out, json.dumps(found, indent=2))
    print(", ".join(f"{key} {value}" for key, value in where.items() if value), "\n\n", table(rows), sep="")
    return int(any(row.name == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
