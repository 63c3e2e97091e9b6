"""Our generate stage against bare diffusers: ``python -m bench.speed.overhead [--json] [--runs 9] [--steps 28]
[--account]``.

The same embedded folder, prompt, seed and steps, warm, alternating; the median of the ratios pair by pair. Both use
float32, and the pictures must agree within 1/255.

``--account`` runs a whole warm prediction and says for every span how much of it no model was running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.core.settings import ROOT, Settings
from backend.core.timeline import Span
from backend.devices.torchvision_ops import ensure_torchvision_operators
from modules.app.service import start
from modules.pipeline.base import ImagePipeline
from modules.request.image_request import ImageRequest

PROMPT = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"
FOLDER = ROOT / "weights" / "embedded" / "flux"


def bare_diffusers(steps: int, tokens: int, side: int) -> Callable[[], Image.Image]:
    """A plain diffusers script as users write it, its picture by a call."""
    ensure_torchvision_operators()
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(
        FOLDER, torch_dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> Image.Image:
        generator = torch.Generator("cpu").manual_seed(0)
        output = pipeline(
            PROMPT,
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=3.5,
            max_sequence_length=tokens,
            generator=generator,
        )
        image: Image.Image = output.images[0]
        return image

    return draw


def ours(steps: int) -> tuple[Callable[[], Image.Image], int, int]:
    service = start(replace(Settings(), model="embedded", dtype="float32", log_level="WARNING"))
    stage = ImagePipeline(service.pipeline.stages[:1])
    side = service.profile.native
    request = ImageRequest(
        prompt=PROMPT, width=side, height=side, seed=0, num_inference_steps=steps, guidance_scale=3.5
    )
    return lambda: stage.run(request).pictures[0].image, service.profile.tokens, side


def account(steps: int) -> list[tuple[str, float, float]]:
    """Of every span of a warm prediction its name, its seconds, and those of them in which a model computed."""
    service = start(replace(Settings(), model="embedded", log_level="ERROR"))
    work: list[tuple[float, float]] = []
    begun: list[float] = []
    for name in service.models.names():
        with service.models.on_device(name) as loan:
            module: Any = loan[0]
        for part in (module.encoder, module.decoder) if name == "vae" else (module,):
            part.register_forward_pre_hook(lambda module, args: begun.append(time.perf_counter()))
            part.register_forward_hook(lambda module, args, output: work.append((begun.pop(), time.perf_counter())))
    for number in range(2):
        work.clear()
        timeline = service.new_timeline()
        zero = time.perf_counter() - timeline.seconds
        inputs = {"prompt": f"{PROMPT}, picture {number}", "seed": number, "num_inference_steps": steps}
        service.predict(inputs, lambda name, value: None, lambda stage, done, total: None, timeline)

    def inside(span: Span) -> float:
        return sum(
            end - begin for begin, end in work if span.start <= begin - zero and end - zero <= span.start + span.seconds
        )

    return [("  " * span.depth + span.name, span.seconds, inside(span)) for span in timeline.spans]


def seconds(draw: Callable[[], Image.Image]) -> float:
    begin = time.perf_counter()
    draw()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--account", action="store_true")
    arguments = parser.parse_args()
    if arguments.account:
        print(f"{'span':<24} {'ms':>9} {'models ms':>10} {'rest ms':>9}")
        for name, whole, models in account(arguments.steps):
            print(f"{name:<24} {1000 * whole:>9.1f} {1000 * models:>10.1f} {1000 * (whole - models):>9.1f}")
        return
    our_stage, tokens, side = ours(arguments.steps)
    bare = bare_diffusers(arguments.steps, tokens, side)
    # the autoencoder's memory layout is another one, which rounds differently
    if np.abs(np.asarray(our_stage()).astype(int) - np.asarray(bare())).max() > 1:
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
            "generate stage, same picture, warm: ours {ours_seconds} s, diffusers {diffusers_seconds} s, "
            "ratio {ratio} (median of {runs} pairs)".format(**report)
        )


if __name__ == "__main__":
    main()
