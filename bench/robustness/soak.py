"""Sends hundreds of mixed requests to one service and checks what it keeps: ``python -m bench.robustness.soak
[--requests 500]``.

Sizes, batches, stages and formats change; some requests are refused, canceled or fail. Afterwards: did weights move, is
host memory level, are files left, and does every tenth picture equal that of a fresh process to the byte?
``--leak 1MB`` keeps that much of every request, to show that the check notices.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.core.errors import InputError
from backend.core.settings import ROOT, load_settings
from backend.core.units import parse_bytes
from backend.devices.probe import process_memory
from modules.app.service import Service, start
from modules.pipeline.base import Progress, no_progress

MEMORY_ALLOWED = 50_000_000
"""Bytes by which the fullest moment may be above the mean."""
WARM_UP = 0.1
"""Share of the requests after which memory is looked at."""
RATIOS = ("1:1", "3:2", "9:16", "21:9")
WORDS = (
    "a smiling woman with red hair, blue shirt, green background",
    "a man with a hat, gray background",
    "two women, purple background",
)


class Canceled(BaseException):
    """As the server's: no ``except Exception`` stops it."""


class Broken(Exception):
    """A failure that nobody foresaw."""


@dataclass(frozen=True)
class SoakRequest:
    """``inputs`` as the command takes them. ``outcome`` is "done", "refused", "canceled" or "failed"."""

    inputs: Mapping[str, Any]
    outcome: str


@dataclass
class Soak:
    """What was seen. Bytes; ``different`` are the requests whose picture a fresh process made otherwise."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bytes_moved: int = 0
    memory: list[int] = field(default_factory=list)
    left_files: list[str] = field(default_factory=list)
    compared: int = 0
    different: list[int] = field(default_factory=list)

    @property
    def memory_above_mean(self) -> int:
        level = self.memory[int(WARM_UP * len(self.memory)) :]
        return int(max(level) - statistics.mean(level))

    def faults(self) -> list[str]:
        found = {
            f"{self.bytes_moved} bytes of weights moved": self.bytes_moved,
            f"host memory rose {self.memory_above_mean / 1e6:.0f} MB above its mean": self.memory_above_mean
            > MEMORY_ALLOWED,
            f"files were left: {', '.join(self.left_files[:3])}": self.left_files,
            f"pictures differ from a fresh process's: {self.different}": self.different,
        }
        return [words for words, fault in found.items() if fault]


def mixed_requests(count: int, folder: Path, seed: int = 0) -> list[SoakRequest]:
    """The requests, and in ``folder`` the pictures that some of them redraw."""
    rng = random.Random(seed)
    source, damaged = folder / "source.png", folder / "damaged.png"
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)).resize((256, 256)).save(source)
    damaged.write_bytes(source.read_bytes()[:2000])

    def one(index: int) -> SoakRequest:
        inputs: dict[str, Any] = {
            "prompt": rng.choice(WORDS),
            "aspect_ratio": rng.choice(RATIOS),
            "megapixels": rng.choice(("1", "0.25")),
            "seed": index,
            "num_outputs": rng.choice((1, 1, 2)),
            "num_inference_steps": rng.choice((1, 2, 3)),
            "adetailer": rng.random() < 0.5,
            "scale": rng.choice((1.0, 1.0, 1.5, 2.0)),
            "output_format": rng.choice(("webp", "png", "jpg")),
        }
        if rng.random() < 0.2:
            inputs |= {"image": source, "prompt_strength": 0.9}
        outcome = rng.choices(("done", "refused", "canceled", "failed"), (80, 8, 6, 6))[0]
        if outcome == "refused":
            inputs.pop("image", None)  # its shape would go over a wrong one
            inputs |= rng.choice(
                (
                    {"prompt": " "},
                    {"aspect_ratio": "custom", "width": 300, "height": 256},
                    {"image": damaged},
                    {"num_outputs": 99},
                )
            )
        return SoakRequest(inputs, outcome)

    return [one(index) for index in range(count)]


def progress_of(outcome: str) -> Progress:
    """Progress that nobody reads, or that breaks the prediction off after its first step."""
    wanted: BaseException | None = {"canceled": Canceled(), "failed": Broken()}.get(outcome)
    if wanted is None:
        return no_progress

    def progress(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise wanted

    return progress


def pixels(file: Path) -> bytes:
    """All of a picture that does not tell how long it took, as its file does."""
    with Image.open(file) as image:
        return image.convert("RGB").tobytes()


def fresh_pictures(request: SoakRequest, folder: Path, dtype: str) -> list[bytes]:
    """The pixels that a process of its own makes of the request, computing in ``dtype``."""
    given = [f"{name}={'@' if isinstance(value, Path) else ''}{value}" for name, value in request.inputs.items()]
    command = [
        sys.executable,
        "-P",
        "-m",
        "modules.cli.predict",
        "-o",
        str(folder),
        *(part for text in given for part in ("-i", text)),
    ]
    # another number of threads would round differently
    own = {
        "PYTHONPATH": str(ROOT),
        "FLUX_MODEL": "embedded",
        "FLUX_LOG_LEVEL": "ERROR",
        "FLUX_CPU_THREADS": str(torch.get_num_threads()),
        "FLUX_DTYPE": dtype,
    }
    subprocess.run(command, cwd=folder, env={**os.environ, **own}, check=True, capture_output=True)
    return [pixels(file) for file in sorted(folder.iterdir())]


def kept_pages(size: int) -> mmap.mmap:
    """``size`` bytes that no other memory of the process makes room for.

    An array of less than 32 MB can come to lie in memory that glibc's heap kept of earlier ones, and then the process
    does not grow (seen: 20 arrays of 20 MB, 0 bytes). A true leak is hidden in the same way until that memory is full,
    so let there be many requests.
    """
    pages = mmap.mmap(-1, size)
    pages.write(b"\1" * size)
    return pages


def soak(service: Service, requests: list[SoakRequest], scratch: Path, leak: int = 0, every: int = 10) -> Soak:
    """Runs the requests one after the other. ``scratch`` is the folder in which the service keeps its files."""
    seen = Soak()
    leaked: list[mmap.mmap] = []
    at_rest = {path for path in scratch.rglob("*") if path.is_file()}
    last: list[Path] = []

    def metric(name: str, value: float) -> None:
        if name == "model_bytes_moved":
            seen.bytes_moved += int(value)

    for index, request in enumerate(requests):
        try:
            last = service.predict(request.inputs, metric, progress_of(request.outcome))
            outcome = "done"
        except InputError as error:
            if request.outcome != "refused":
                raise AssertionError(f"request {index} was refused: {error}") from error
            last, outcome = [], "refused"
        except Canceled:
            last, outcome = [], "canceled"
        except Broken:
            last, outcome = [], "failed"
        if outcome != request.outcome:
            raise AssertionError(f"request {index} was {outcome}, not {request.outcome}: {request.inputs}")
        seen.outcomes[outcome] += 1
        if leak:
            leaked.append(kept_pages(leak))
        seen.memory.append(process_memory())
        if outcome == "done" and every and index % every == 0:
            with tempfile.TemporaryDirectory() as folder:
                seen.compared += 1
                dtype = str(service.runtime.device.dtype).removeprefix("torch.")
                if fresh_pictures(request, Path(folder), dtype) != [pixels(file) for file in last]:
                    seen.different.append(index)
    kept = {path for path in scratch.rglob("*") if path.is_file()} - at_rest - set(last)
    seen.left_files = [str(path.relative_to(scratch)) for path in sorted(kept)]
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--leak", type=parse_bytes, default=0, help="bytes that are kept of every request, such as 1MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        sources, scratch = Path(folder) / "sources", Path(folder) / "scratch"
        sources.mkdir()
        scratch.mkdir()
        tempfile.tempdir = str(scratch)  # whatever is written anywhere is seen
        service = start(replace(load_settings(), model="embedded", log_level="ERROR"))
        begin = time.monotonic()
        seen = soak(service, mixed_requests(arguments.requests, sources), scratch, arguments.leak)
    print(f"{arguments.requests} requests in {time.monotonic() - begin:.0f} s: {dict(seen.outcomes)}")
    print(
        f"weights moved: {seen.bytes_moved} bytes; host memory: mean {statistics.mean(seen.memory) / 1e6:.0f} MB, ",
        end="",
    )
    print(f"at most {seen.memory_above_mean / 1e6:.1f} MB above it after warm-up")
    print(
        f"files left: {len(seen.left_files)}; compared with fresh processes: {seen.compared}, different: "
        f"{len(seen.different)}"
    )
    for fault in seen.faults():
        print(f"fault: {fault}")
    return bool(seen.faults())


if __name__ == "__main__":
    sys.exit(main())
