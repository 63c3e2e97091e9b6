"""Measures the package on a CUDA GPU, with random weights in the shapes of FLUX.1-dev. Nothing is downloaded.

    python -m bench.gpu [--folder weights/random-flux] [--only loading --only steps] [--out gpu.json]

The weights (34 GB) are written to ``--folder`` once; a folder in memory (/dev/shm) is the fastest. Every measurement
runs in a process of its own with a time of its own, so that one that fails or takes long does not stop the others: 28
steps at 1024 x 1024 by diffusers and by us with every technique, decoding, cards of 12, 24, 16, 80 and 48 GB with
predicted and measured peaks and the bytes that a warm prediction moves, attention kernels, bandwidth and overlap of
copies, a picture by the embedded models with every stage, the OOM fallback, and loading. The result is one table with
each figure beside its limit. ``--out`` has every row as soon as it is known; beside it lie the log of all processes,
with the whole of every failure, and the picture. ``--seconds`` ends in time: what matters most comes first, and what is
left out is named. ``bench/gpu/run.sh`` does all of it from a bare checkout and a folder of wheels.

``--small`` runs the same code on the CPU with the embedded models and emulated cards. Its figures say nothing about a
GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Timer
from types import MappingProxyType
from typing import IO

import torch

from backend.core.files import write_atomic
from backend.core.settings import ROOT, Settings
from backend.core.units import parse_bytes
from backend.devices.torchvision_ops import ensure_torchvision_operators
from bench.gpu.ground import Ground, Row
from modules.app.environment import set_environment

PROCESSES: Mapping[tuple[str, ...], float] = MappingProxyType(
    {
        ("caps", "fallback"): 230,
        ("steps",): 180,
        ("attention", "copies", "picture"): 90,
        ("loading",): 60,
        ("graphs",): 200,
    }
)
"""The measures of every process, in order, and the seconds that it may take at most."""
NAMES = tuple(name for names in PROCESSES for name in names)
CAPS = ("12GB", "24GB", "16GB", "80GB", "48GB")
"""Those first that go through the most code."""
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
            1,
            arguments.pictures,
        )
    if not torch.cuda.is_available():
        sys.exit(
            "error: torch finds no CUDA device; run this on a machine with one, or give --small to try the code on "
            "the CPU"
        )
    total = torch.cuda.get_device_properties(0).total_memory
    caps = tuple(cap for cap in map(parse_bytes, arguments.cap or CAPS) if cap <= 1.1 * total)
    folder = arguments.folder.resolve()
    return Ground(torch.device("cuda", 0), str(folder), folder, 1024, 28, caps, pictures=arguments.pictures)


def machine(ground: Ground) -> dict[str, str]:
    name = torch.cuda.get_device_name() if ground.on_gpu else platform.processor() or "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "diffusers": version("diffusers"),
    }


def measure(
    names: tuple[str, ...], arguments: argparse.Namespace, limit: float, log: IO[str], found: Callable[[Row], None]
) -> None:
    """Measures in a process of its own, which gives its rows to ``found`` as they come. A failure becomes a row that
    says why, and so does the end of its time (``limit``, in seconds), at which the process logs where it is."""
    together = ", ".join(names)
    if limit <= 0:
        found(Row(together, "left out", math.nan, "", note="no time was left"))
        return
    given = [
        *(part for name in names for part in ("--only", name)),
        *(("--small",) if arguments.small else ("--folder", str(arguments.folder))),
        *(part for cap in arguments.cap for part in ("--cap", cap)),
        *(("--pictures", str(arguments.out.parent.resolve())) if arguments.out else ()),
    ]
    command = [sys.executable, "-X", "faulthandler", "-m", "bench.gpu", "--here", *given]
    environment = dict(os.environ)
    set_environment(Settings(), environment, ())  # as where the product is started: torch reads it when it is imported
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
    ) as process:  # in a group with those that compile for it, which hold the pipe too
        assert process.stdout
        timer = Timer(limit, os.killpg, [process.pid, signal.SIGABRT])
        timer.start()
        for line in process.stdout:
            if line.startswith("{"):
                found(Row(**json.loads(line)))
        code = process.wait()
        ended = not timer.is_alive()
        timer.cancel()
    if code and ended:
        found(Row(together, "left out", math.nan, "", note="its time ended meanwhile; the log says where"))
    elif code:
        found(Row(together, "failed", math.nan, "", note=f"the process ended with {code}; see the log"))


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
    parser.add_argument("--here", action="store_true", help="in this process, printing rows as JSON")
    parser.add_argument("--pictures", type=Path, help="where a picture is written, with --here")
    arguments = parser.parse_args()
    ground = ground_of(arguments)
    ensure_torchvision_operators()  # before diffusers is imported, below
    return in_this_process(ground, arguments) if arguments.here else in_processes(ground, arguments)


def in_this_process(ground: Ground, arguments: argparse.Namespace) -> int:
    """Prints every row as soon as it is known. The log has what the product says of its plan, of every technique, and
    why compiling failed."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("modules.compilation").setLevel("DEBUG")
    from bench.gpu.measures import MEASURES
    from bench.gpu.timing import attempted

    for name in arguments.only or NAMES:
        for row in attempted(ground, name, "all of it", partial(MEASURES[name], ground)):
            print(json.dumps(asdict(row)), flush=True)
    return 0


def in_processes(ground: Ground, arguments: argparse.Namespace) -> int:
    begin, where, rows = time.monotonic(), machine(ground), list[Row]()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.1f} s  {text}", file=sys.stderr, flush=True)

    def found(row: Row) -> None:
        rows.append(row)
        say(f"{row.measure}: {row.name}: {row.value:.4g} {row.unit}  {row.note[:200]}")
        if arguments.out:  # what is there stays when the machine is taken away
            found_so_far = [{**asdict(one), "value": None if math.isnan(one.value) else one.value} for one in rows]
            write_atomic(arguments.out, json.dumps({"machine": where, "rows": found_so_far}, indent=2))

    if not arguments.small:
        from bench.gpu.checkpoint import FLUX_DEV, write_checkpoint

        size = write_checkpoint(arguments.folder, FLUX_DEV)
        say(f"{size / 1e9:.1f} GB of weights in {arguments.folder}")
    with nullcontext(sys.stderr) if not arguments.out else arguments.out.with_suffix(".log").open("a") as log:
        for process, most in PROCESSES.items():
            if names := tuple(name for name in process if name in (arguments.only or NAMES)):
                say(", ".join(names))
                left = arguments.seconds - (time.monotonic() - begin)
                measure(names, arguments, min(left, most), log, found)
    print(", ".join(f"{key} {value}" for key, value in where.items() if value), "\n\n", table(rows), sep="")
    return int(any(row.name.endswith("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
