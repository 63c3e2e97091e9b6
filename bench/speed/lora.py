"""What changing a LoRA between two pictures costs: ``python -m bench.speed.lora [--runs 15] [--steps 8]``.

Alternating in one process, on the embedded model: no LoRA, the LoRA of the picture before, another one, and both. The
files are the two that ``training.models.lora`` trained. It also says how long a file takes when it is read for the
first time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports diffusers

from backend.core.settings import ROOT, Settings  # noqa: E402
from backend.core.timeline import Timeline  # noqa: E402
from modules.app.service import start  # noqa: E402
from modules.diffusion.base import DiffusionService  # noqa: E402
from modules.diffusion.denoise_request import DenoiseRequest  # noqa: E402
from modules.diffusion.monitor import Monitor  # noqa: E402
from modules.lora.adapters import Loras  # noqa: E402
from modules.lora.files.digests import digests  # noqa: E402
from modules.lora.files.lora_file import LoraFile  # noqa: E402
from modules.pipeline.generate import GenerateStage  # noqa: E402

PROMPT = "a portrait of a smiling woman with long red hair, blue shirt, green background"
SIDE = 256
FOLDER = ROOT / "weights" / "embedded" / "loras"


def opened(path: Path) -> LoraFile:
    found = digests(path)
    return LoraFile(path.stem, path, found.sha256, found.tensors)


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure(service: DiffusionService, pencil: LoraFile, sunset: LoraFile, steps: int, runs: int) -> dict[str, float]:
    """Median seconds of a picture by what was used for it and for the one before."""

    def draw(loras: Loras) -> float:
        request = DenoiseRequest((PROMPT,), (1,), SIDE, SIDE, steps, 3.5, loras=loras)
        return timed(lambda: service.generate(request, Monitor(Timeline())))

    times: dict[str, list[float]] = {}
    for run in range(runs + 1):
        row = {"no LoRA": draw(())}
        draw(((pencil, 1.0),))
        row["the LoRA of before"] = draw(((pencil, 1.0),))
        row["another LoRA"] = draw(((sunset, 1.0),))
        row["two LoRAs"] = draw(((pencil, 0.6), (sunset, 0.6)))
        row["none after two"] = draw(())
        if run:  # the first warms up
            for name, seconds in row.items():
                times.setdefault(name, []).append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    running = start(replace(Settings(), model="embedded", log_level="ERROR"))
    service = next(stage.service for stage in running.pipeline.stages if isinstance(stage, GenerateStage))
    pencil, sunset = opened(FOLDER / "pencil.safetensors"), opened(FOLDER / "sunset.safetensors")
    read = timed(lambda: service.adapters.check([pencil, sunset]))
    medians = measure(service, pencil, sunset, arguments.steps, arguments.runs)
    base = medians["the LoRA of before"]
    print(f"reading both files                {1000 * read:7.1f} ms")
    for name, seconds in medians.items():
        print(f"{name:<32}  {1000 * seconds:7.1f} ms  {seconds / base:.3f}")


if __name__ == "__main__":
    main()
