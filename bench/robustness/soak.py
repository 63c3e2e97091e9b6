"""Sends hundreds of mixed requests to one service and checks what it keeps: ``python -m bench.robustness.soak
[--requests 500] [--clients 3]``.

They go through the queue of the server, by several clients at once. Sizes, batches, stages and formats change; some are
refused, fail, or are canceled at a random moment. Afterwards: did weights move, are host memory, open files and threads
level, are files left, and does every tenth picture equal that of a fresh process to the byte?
``--leak 1MB`` keeps that much of every request, to show that the check notices.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from backend.core.cancellation import Check
from backend.core.errors import InputError
from backend.core.settings import ROOT, load_settings
from backend.core.units import parse_bytes
from backend.devices.probe import process_memory
from modules.app.prediction_queue import PredictionQueue
from modules.app.service import Report, Service, start
from modules.pipeline.base import no_progress
from modules.request.uploads import Uploads

MEMORY_ALLOWED = 50_000_000
"""Bytes by which the fullest moment may be above the mean."""
CANCEL_SECONDS = 1.0
"""A canceled request is canceled after at most this: while it waits, while it runs, or in its last moments."""
DELETION_SECONDS = 10.0
"""In which the files of the last answers are deleted."""
WARM_UP = 0.1
"""Share of the requests after which memory is looked at."""
RATIOS = ("1:1", "3:2", "9:16", "21:9")
WORDS = (
    "a smiling woman with red hair, blue shirt, green background",
    "a man with a hat, gray background",
    "two women, purple background",
)


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
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    left_files: list[str] = field(default_factory=list)
    compared: int = 0
    different: list[int] = field(default_factory=list)

    @property
    def memory_above_mean(self) -> int:
        level = self.memory[int(WARM_UP * len(self.memory)) :]
        return int(max(level) - statistics.mean(level))

    @property
    def memory_of_quarters(self) -> tuple[float, float]:
        """Means in bytes of the third and of the last quarter of the requests."""
        quarter = len(self.memory) // 4
        return statistics.mean(self.memory[2 * quarter : 3 * quarter]), statistics.mean(self.memory[3 * quarter :])

    @staticmethod
    def grows(counts: Sequence[int]) -> bool:
        """Whether the last quarter has more of them than any moment of the third: what comes and goes with a request
        is in both."""
        quarter = len(counts) // 4
        return min(counts[3 * quarter :], default=0) > max(counts[quarter : 3 * quarter], default=0)

    def faults(self) -> list[str]:
        found = {
            f"{self.bytes_moved} bytes of weights moved": self.bytes_moved,
            f"host memory rose {self.memory_above_mean / 1e6:.0f} MB above its mean": self.memory_above_mean
            > MEMORY_ALLOWED,
            f"open files or threads rose: {self.descriptors[-1:]}, {self.threads[-1:]}": self.grows(self.descriptors)
            or self.grows(self.threads),
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
        outcome = rng.choices(("done", "refused", "canceled", "failed"), (72, 8, 14, 6))[0]
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


def break_off(stage: str, done: int, total: int) -> None:
    """Progress that breaks the prediction off after its first step."""
    if done == 1:
        raise Broken


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


@dataclass(frozen=True)
class BreakingService:
    """The service, in which the predictions of some seeds fail after a step. ``note`` is called before
    each: whatever the one before held is then free, also what its error held."""

    service: Service
    broken: frozenset[int]
    note: Callable[[], None]

    @property
    def outputs(self) -> Path:
        return self.service.outputs

    @property
    def uploads(self) -> Uploads:
        return self.service.uploads

    def predict_into(self, directory: Path, inputs: Mapping[str, Any], report: Report, check: Check) -> list[Path]:
        progress = break_off if inputs["seed"] in self.broken else no_progress
        self.note()
        return self.service.predict_into(directory, inputs, report, progress, check=check)


@dataclass
class Clients:
    """Several clients that take the next request as soon as theirs is answered, so that there is always one waiting."""

    service: Service
    requests: Sequence[SoakRequest]
    leak: int
    every: int
    seen: Soak = field(default_factory=Soak)
    leaked: list[mmap.mmap] = field(default_factory=list)

    async def run(self, count: int) -> None:
        broken = frozenset(index for index, request in enumerate(self.requests) if request.outcome == "failed")
        queue = PredictionQueue(lambda: cast(Service, BreakingService(self.service, broken, self._note)))
        following = iter(range(len(self.requests)))
        before = set(self.service.outputs.iterdir())
        await asyncio.gather(*(self._client(queue, following) for _ in range(count)))
        deadline = time.monotonic() + DELETION_SECONDS
        while set(self.service.outputs.iterdir()) - before and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _client(self, queue: PredictionQueue, following: Iterator[int]) -> None:
        for index in following:
            outcome, pictures = await self._answer(queue, index)
            expected = self.requests[index].outcome
            if outcome != expected and (outcome, expected) != ("done", "canceled"):  # the cancel came too late
                raise AssertionError(f"request {index} was {outcome}, not {expected}: {self.requests[index].inputs}")
            self.seen.outcomes[outcome] += 1
            if outcome == "done" and self.every and index % self.every == 0:
                self._compare(index, pictures)

    async def _answer(self, queue: PredictionQueue, index: int) -> tuple[str, list[bytes]]:
        """The outcome of a request, and the pixels of its pictures."""
        request = self.requests[index]
        inputs = dict(request.inputs)
        if "image" in inputs:  # Cog's server writes there what a client sends
            inputs["image"] = shutil.copyfile(inputs["image"], self.service.uploads.folder / f"{index}.png")
        prediction = asyncio.create_task(queue.predict(inputs, self._metric))
        if request.outcome == "canceled":
            await asyncio.wait([prediction], timeout=random.Random(index).uniform(0, CANCEL_SECONDS))
            prediction.cancel()
        try:
            return "done", [pixels(file) for file in await prediction]
        except InputError:
            return "refused", []
        except asyncio.CancelledError:
            return "canceled", []
        except Broken:
            return "failed", []

    def _metric(self, name: str, value: float) -> None:
        if name == "model_bytes_moved":
            self.seen.bytes_moved += int(value)

    def _note(self) -> None:
        if self.leak:
            self.leaked.append(kept_pages(self.leak))
        self.seen.memory.append(process_memory())
        self.seen.descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        self.seen.threads.append(threading.active_count())

    def _compare(self, index: int, pictures: list[bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.seen.compared += 1
            dtype = str(self.service.runtime.device.dtype).removeprefix("torch.")
            if fresh_pictures(self.requests[index], Path(folder), dtype) != pictures:
                self.seen.different.append(index)


def soak(
    service: Service, requests: Sequence[SoakRequest], scratch: Path, leak: int = 0, every: int = 10, clients: int = 3
) -> Soak:
    """Sends the requests through a queue, by so many clients. ``scratch`` is the folder in which the service keeps its
    files."""
    at_rest = set(scratch.rglob("*"))
    sent = Clients(service, requests, leak, every)
    asyncio.run(sent.run(clients))
    sent.seen.left_files = [str(path.relative_to(scratch)) for path in sorted(set(scratch.rglob("*")) - at_rest)]
    return sent.seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--every", type=int, default=10, help="of so many pictures one is compared; 0: none")
    parser.add_argument("--leak", type=parse_bytes, default=0, help="bytes that are kept of every request, such as 1MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        sources, scratch = Path(folder) / "sources", Path(folder) / "scratch"
        sources.mkdir()
        scratch.mkdir()
        tempfile.tempdir = str(scratch)  # whatever is written anywhere is seen
        service = start(replace(load_settings(), model="embedded", log_level="ERROR"))
        begin = time.monotonic()
        requests = mixed_requests(arguments.requests, sources)
        seen = soak(service, requests, scratch, arguments.leak, arguments.every, arguments.clients)
    print(f"{arguments.requests} requests in {time.monotonic() - begin:.0f} s: {dict(seen.outcomes)}")
    print(
        f"weights moved: {seen.bytes_moved} bytes; host memory: mean {statistics.mean(seen.memory) / 1e6:.0f} MB, ",
        end="",
    )
    print(f"at most {seen.memory_above_mean / 1e6:.1f} MB above it after warm-up; ", end="")
    print("third and last quarter: {:.1f} and {:.1f} MB".format(*(mean / 1e6 for mean in seen.memory_of_quarters)))
    print(
        f"open files: {min(seen.descriptors)} to {max(seen.descriptors)}, at the end {seen.descriptors[-1]}; ", end=""
    )
    print(f"threads: {min(seen.threads)} to {max(seen.threads)}, at the end {seen.threads[-1]}")
    print(
        f"files left: {len(seen.left_files)}; compared with fresh processes: {seen.compared}, different: "
        f"{len(seen.different)}"
    )
    for fault in seen.faults():
        print(f"fault: {fault}")
    return bool(seen.faults())


if __name__ == "__main__":
    sys.exit(main())
