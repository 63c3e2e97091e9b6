"""A whole job against a plain diffusers script, on a CPU: ``python -m bench.speed.cpu [--runs 3] [--jobs 3]
[--steps 28] [--json]``.

Both generate a picture with the embedded models, repaint every detected face, upscale by 2 and write a webp file. The
plain script is what a user writes: ``FluxPipeline``, then ``FluxInpaintPipeline`` with ``padding_mask_crop`` face by
face, then the upscaler on the whole picture. It uses our detector, because ultralytics does not read its file.

Both compute in float32. Cold: one picture from process start to end. Warm: the jobs after the first one of a process,
each with a new prompt. Ratios are taken pair by pair and their medians quoted, also of processor time, which other work
on the machine influences less; peak memory is the kernel's figure for the process. ``--profile`` prints where our time
goes, ``--layouts`` what the order of channels in memory changes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from backend.core.settings import ROOT, Settings
from backend.devices.probe import usable_threads
from backend.devices.torchvision_ops import ensure_torchvision_operators

EMBEDDED = ROOT / "weights" / "embedded"
SHIRTS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
CONFIDENCE, PADDING, STRENGTH = 0.3, 32, 0.4
"""ADetailer's defaults, which ours has too."""
SCALE = 2
"""Our default; the network upscales by 4, and the rest is a reduction, there as here."""

Job = Callable[[int, Path], None]
"""Makes picture number n into a file."""


def prompt_of(number: int) -> str:
    """Another prompt for every job, so that no cache of prompts helps."""
    return f"two people: a man with a beard and a {SHIRTS[number % len(SHIRTS)]} shirt, a woman with red hair"


def plain_script(steps: int) -> Job:
    ensure_torchvision_operators()
    from diffusers import FluxInpaintPipeline, FluxPipeline
    from spandrel import ModelLoader

    from modules.detection.yolo import Detector, load_detector_network, offline_ultralytics

    torch.set_num_threads(usable_threads())
    drawing = FluxPipeline.from_pretrained(
        EMBEDDED / "flux", torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    inpainting = FluxInpaintPipeline.from_pipe(drawing)
    for pipeline in (drawing, inpainting):
        pipeline.set_progress_bar_config(disable=True)
    offline_ultralytics(Path(tempfile.mkdtemp()))
    detector = Detector(load_detector_network(EMBEDDED / "face_detector.safetensors"))
    upscaler: Any = ModelLoader("cpu").load_from_file(EMBEDDED / "upscaler.safetensors")

    def job(number: int, file: Path) -> None:
        def common(seed: int) -> dict[str, Any]:
            generator = torch.Generator("cpu").manual_seed(seed)
            size = {"width": 256, "height": 256, "max_sequence_length": 40}
            return {
                "prompt": prompt_of(number),
                "num_inference_steps": steps,
                "guidance_scale": 3.5,
                "generator": generator,
                **size,
            }

        image = drawing(**common(number)).images[0]
        boxes = detector.detect([image], CONFIDENCE)[0].boxes
        for index, box in enumerate(boxes):
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).rectangle(tuple(box), fill=255)
            image = inpainting(
                image=image, mask_image=mask, strength=STRENGTH, padding_mask_crop=PADDING, **common(number + index)
            ).images[0]
        with torch.inference_mode():
            pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
            upscaled = upscaler(pixels)[0].clamp(0, 1).mul(255).round().byte()
        size = (SCALE * image.width, SCALE * image.height)
        Image.fromarray(upscaled.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.LANCZOS).save(file, quality=80)

    return job


def our_service(steps: int) -> Job:
    from modules.app.service import start

    service = start(replace(Settings(), model="embedded", dtype="float32", log_level="WARNING"))

    def job(number: int, file: Path) -> None:
        inputs = {"prompt": prompt_of(number), "seed": number, "num_inference_steps": steps}
        service.predict(inputs, lambda name, value: None, lambda stage, done, total: None)[0].rename(file)

    return job


MAKERS: dict[str, Callable[[int], Job]] = {"ours": our_service, "plain": plain_script}


def work(side: str, steps: int, jobs: int, folder: Path) -> None:
    """Several jobs in this process; prints the seconds of each, and its seconds of processor time."""
    job, seconds = MAKERS[side](steps), []
    for number in range(jobs):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        job(number, folder / f"{side}-{number}.webp")
        seconds.append((time.perf_counter() - begin, time.process_time() - begin_cpu))
    print(json.dumps(seconds))


@dataclass(frozen=True)
class Process:
    """Of one process: seconds from its start to its end, those of processor time in it, peak memory in bytes, and
    what it printed."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run(*command: str) -> Process:
    """Runs python with these arguments. Raises RuntimeError when it fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FLUX_MODEL": "embedded",
        "FLUX_DTYPE": "float32",
        "FLUX_LOG_LEVEL": "WARNING",
    }
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-P", *command], env=environment, stdout=output, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        return Process(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output.read())


def from_start(side: str, steps: int, folder: Path) -> Process:
    """One picture, in a process of its own."""
    if side == "plain":
        return run(
            "-m", "bench.speed.cpu", "--work", side, "--steps", str(steps), "--jobs", "1", "--folder", str(folder)
        )
    given = {"prompt": prompt_of(0), "seed": 0, "num_inference_steps": steps}
    return run(
        "-m",
        "modules.cli.predict",
        "-o",
        str(folder),
        *(part for name, value in given.items() for part in ("-i", f"{name}={value}")),
    )


def warm(side: str, steps: int, jobs: int, folder: Path) -> tuple[list[tuple[float, float]], int]:
    """Seconds of every job but the first of one process, by the clock and of the processor, and its peak memory."""
    process = run(
        "-m", "bench.speed.cpu", "--work", side, "--steps", str(steps), "--jobs", str(jobs + 1), "--folder", str(folder)
    )
    return json.loads(process.output)[1:], process.peak_bytes


def compare(runs: int, jobs: int, steps: int, folder: Path) -> dict[str, Any]:
    starts = [(from_start("ours", steps, folder), from_start("plain", steps, folder)) for _ in range(runs)]
    warms = [(warm("ours", steps, jobs, folder), warm("plain", steps, jobs, folder)) for _ in range(runs)]
    pairs = [pair for (ours, _), (plain, _) in warms for pair in zip(ours, plain, strict=True)]

    def figures(
        pairs: list[tuple[tuple[float, float], tuple[float, float]]], peaks: list[tuple[int, int]]
    ) -> dict[str, float]:
        return {
            "ours_seconds": round(statistics.median(a for (a, _), _ in pairs), 2),
            "plain_seconds": round(statistics.median(b for _, (b, _) in pairs), 2),
            "ratio": round(statistics.median(a / b for (a, _), (b, _) in pairs), 3),
            "cpu_ratio": round(statistics.median(a / b for (_, a), (_, b) in pairs), 3),
            "ours_peak_mb": round(max(a for a, _ in peaks) / 1e6),
            "plain_peak_mb": round(max(b for _, b in peaks) / 1e6),
        }

    return {
        "from_process_start": figures(
            [((a.seconds, a.cpu_seconds), (b.seconds, b.cpu_seconds)) for a, b in starts],
            [(a.peak_bytes, b.peak_bytes) for a, b in starts],
        ),
        "warm": figures(pairs, [(ours[1], plain[1]) for ours, plain in warms]),
        "runs": runs,
        "steps": steps,
        "threads": usable_threads(),
    }


def profile(steps: int) -> str:
    """Set-up and one warm prediction, span by span."""
    from modules.app.service import start

    service = start(replace(Settings(), model="embedded", dtype="float32", log_level="ERROR"))
    timeline = service.new_timeline()
    for number in range(2):
        timeline = service.new_timeline()
        inputs = {"prompt": prompt_of(number), "seed": number, "num_inference_steps": steps}
        service.predict(inputs, lambda name, value: None, lambda stage, done, total: None, timeline)
    return f"set-up\n{service.timeline.table()}\n\na warm prediction\n{timeline.table()}"


def layouts() -> str:
    """Processor time of one thread of the autoencoder and the upscaler at 256 x 256, plain and channels last, and
    how far the results are apart."""
    ensure_torchvision_operators()
    from diffusers import AutoencoderKL

    from backend.checkpoints.loader import load_diffusers_module
    from modules.upscaling.tiled import load_upscaler_network

    torch.set_num_threads(1)
    vae: Any = load_diffusers_module(AutoencoderKL, EMBEDDED / "flux" / "vae", torch.float32)
    upscaler: Any = load_upscaler_network(EMBEDDED / "upscaler.safetensors")
    latents, pixels = torch.randn(1, 16, 16, 16), torch.rand(1, 3, 256, 256)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "autoencoder, decode": lambda: vae.decode(latents, return_dict=False)[0],
        "autoencoder, encode": lambda: vae.encode(pixels).latent_dist.mean,
        "upscaler": lambda: upscaler(pixels),
    }

    def least_seconds(run: Callable[[], torch.Tensor]) -> float:
        times = []
        for _ in range(4):
            begin = time.process_time()
            run()
            times.append(time.process_time() - begin)
        return min(times)

    with torch.inference_mode():
        plain = {name: (least_seconds(run), run()) for name, run in runs.items()}
        vae.to(memory_format=torch.channels_last)
        upscaler.to(memory_format=torch.channels_last)
        lines = [f"{'':<20} {'plain s':>8} {'last s':>8} {'difference':>10}"]
        for name, run in runs.items():
            lines.append(
                f"{name:<20} {plain[name][0]:>8.3f} {least_seconds(run):>8.3f} "
                f"{float((run() - plain[name][1]).abs().max()):>10.1e}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--layouts", action="store_true", help="channels last or not, for the autoencoder and the upscaler"
    )
    parser.add_argument("--work", choices=tuple(MAKERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.steps, arguments.jobs, arguments.folder)
        return
    if arguments.layouts:
        print(layouts())
        return
    if arguments.profile:
        print(profile(arguments.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        report = compare(arguments.runs, arguments.jobs, arguments.steps, Path(folder))
    if arguments.json:
        print(json.dumps(report))
        return
    line = (
        "ours {ours_seconds} s, plain {plain_seconds} s, ratio {ratio} (of processor time {cpu_ratio}); peak "
        "{ours_peak_mb} MB, plain {plain_peak_mb} MB"
    )
    for name in ("from_process_start", "warm"):
        print(f"{name.replace('_', ' '):<20}", line.format(**report[name]))


if __name__ == "__main__":
    main()
