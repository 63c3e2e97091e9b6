"""What n faces cost against one: ``python -m bench.speed.details [--faces 4] [--runs 15] [--dtype auto] [--json]``.

The detail pass alone, on drawn portraits side by side in one picture, in batches and one face at a time, alternating in
one process. It also reports by how much batches change the pictures (rounding).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import replace

import numpy as np
from PIL import Image

from backend.devices.torchvision_ops import ensure_torchvision_operators

ensure_torchvision_operators()  # before anything imports diffusers

from backend.core.settings import Settings  # noqa: E402
from backend.core.timeline import Timeline  # noqa: E402
from backend.core.validation import choices, fields_of  # noqa: E402
from modules.app.service import start  # noqa: E402
from modules.pipeline.adetailer import AdetailerStage  # noqa: E402
from modules.pipeline.base import ImageBatch, Picture, no_progress  # noqa: E402
from modules.request.adetailer_unit import AdetailerUnit  # noqa: E402
from modules.request.image_request import ImageRequest  # noqa: E402
from training.data.drawing import draw_scene  # noqa: E402
from training.data.scene import sample_scene  # noqa: E402

PROMPT = "a portrait of a smiling woman with long red hair, blue shirt, green background"
SIDE = 256


def portraits(count: int, seed: int = 5) -> Image.Image:
    """Drawn portraits of one person each, side by side."""
    rng = random.Random(seed)
    scenes = (
        scene
        for scene in iter(lambda: sample_scene(rng, (SIDE, SIDE)), None)
        if scene.framing == "portrait" and len(scene.people) == 1
    )
    canvas = Image.new("RGB", (count * SIDE, SIDE))
    for index in range(count):
        canvas.paste(draw_scene(next(scenes)), (index * SIDE, 0))
    return canvas


def seconds(stage: AdetailerStage, image: Image.Image, request: ImageRequest) -> tuple[float, Image.Image]:
    begin = time.perf_counter()
    result = stage.run(ImageBatch((Picture(image, 1),), Timeline(), no_progress), request).pictures[0].image
    return time.perf_counter() - begin, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=4)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument(
        "--dtype", default="auto", choices=choices(fields_of(Settings)["dtype"]), help="as the setting of that name"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    service = start(replace(Settings(), model="embedded", dtype=arguments.dtype, log_level="ERROR"))
    batched = next(stage for stage in service.pipeline.stages if isinstance(stage, AdetailerStage))
    single = AdetailerStage(batched.service, batched.detectors, max_batch=1)
    one, many = portraits(1), portraits(arguments.faces)
    request = ImageRequest(prompt=PROMPT, width=SIDE, height=SIDE, seed=1, adetailer=(AdetailerUnit(),))
    times: dict[str, list[float]] = {"one face": [], "in batches": [], "one at a time": []}
    pictures: dict[str, Image.Image] = {}
    for run in range(arguments.runs + 1):
        for name, (stage, image) in {
            "one face": (batched, one),
            "in batches": (batched, many),
            "one at a time": (single, many),
        }.items():
            spent, pictures[name] = seconds(stage, image, request)
            if run:  # the first warms up
                times[name].append(spent)
    medians = {name: statistics.median(values) for name, values in times.items()}
    changed = np.abs(np.asarray(pictures["in batches"]).astype(int) - np.asarray(pictures["one at a time"]).astype(int))
    figures = {
        "faces": arguments.faces,
        "dtype": str(service.runtime.device.dtype).removeprefix("torch."),
        **{f"{name}, seconds": round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["in batches"] / medians["one face"], 2),
        "ratio_one_at_a_time": round(medians["one at a time"] / medians["one face"], 2),
        "largest_difference_255ths": int(changed.max()),
    }
    print(
        json.dumps(figures) if arguments.json else "\n".join(f"{name:<32} {value}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
