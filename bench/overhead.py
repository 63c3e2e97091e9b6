"""What our generate stage costs beside bare diffusers: ``python -m bench.overhead [--json] [--runs 9] [--steps 28]``.

The same embedded folder, prompt, seed and steps, warm, in turns; the ratio is taken pair by pair and its median is quoted.
The pictures must be the same, else the comparison would mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from backend.settings import ROOT, Settings
from backend.torchvision_operators import ensure_torchvision_operators
from modules.pipeline import ImagePipeline
from modules.request import ImageRequest
from modules.startup import start

PROMPT = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"
FOLDER = ROOT / "weights" / "embedded" / "flux"


def bare_diffusers(steps: int, tokens: int, side: int) -> Callable[[], Image.Image]:
    """A plain diffusers script as users write it, its picture by a call."""
    ensure_torchvision_operators()
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> Image.Image:
        generator = torch.Generator("cpu").manual_seed(0)
        output = pipeline(PROMPT, width=side, height=side, num_inference_steps=steps, guidance_scale=3.5, max_sequence_length=tokens, generator=generator)
        image: Image.Image = output.images[0]
        return image

    return draw


def ours(steps: int) -> tuple[Callable[[], Image.Image], int, int]:
    service = start(replace(Settings(), model="embedded", log_level="WARNING"))
    stage = ImagePipeline(service.pipeline.stages[:1])
    side = service.family.native
    request = ImageRequest(prompt=PROMPT, width=side, height=side, seed=0, num_inference_steps=steps, guidance_scale=3.5)
    return lambda: stage.run(request).pictures[0].image, service.family.tokens, side


def seconds(draw: Callable[[], Image.Image]) -> float:
    begin = time.perf_counter()
    draw()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    our_stage, tokens, side = ours(arguments.steps)
    bare = bare_diffusers(arguments.steps, tokens, side)
    if not np.array_equal(np.asarray(our_stage()), np.asarray(bare())):
        sys.exit("the pictures differ, so the times cannot be compared")
    pairs = [(seconds(our_stage), seconds(bare)) for _ in range(arguments.runs)]
    report = {
        "ratio": round(statistics.median(a / b for a, b in pairs), 4),
        "ours_seconds": round(statistics.median(a for a, _ in pairs), 4),
        "diffusers_seconds": round(statistics.median(b for _, b in pairs), 4),
        "runs": arguments.runs,
        "steps": arguments.steps,
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(
            "generate stage, same picture, warm: ours {ours_seconds} s, diffusers {diffusers_seconds} s, ratio {ratio} (median of {runs} pairs)".format(
                **report
            )
        )


if __name__ == "__main__":
    main()
