"""Hires fix at four times the size on an emulated card that does not hold one pass: seams, memory, seconds.

``python -m bench.quality.tiled_redraw [--vram 60MB] [--side 416] [--pictures face sky] [--methods] [-o FOLDER]``. The
embedded models draw a portrait and a sky, which are then finished at ``--side`` pixels with Hires fix: redrawn at four
times the size. A seam is a step that goes the same way along a part of the border of two tiles. It is looked for where
the picture is flat, and compared with such steps elsewhere in the flat parts. ``--methods`` compares with
what the script Ultimate SD upscale does: every tile drawn by itself and pasted with a feather.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.core.units import parse_bytes
from modules.app.service import Service, start
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.diffusion.tile_batches import stitched
from modules.diffusion.tiles import TileGrid
from modules.pipeline.hires import HiresStage
from modules.request.image_request import Hires, ImageRequest

PROMPTS = {
    "face": "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background",
    "sky": "a portrait of a man with black hair, blue background",
}
STEPS, STRENGTH, SCALE = 6, 0.4, 4.0
PART = 64
"""Pixels of a border along which a step is averaged."""
FLAT = 0.5
"""The picture is flat where its own steps are no stronger before it is redrawn, in values of 255."""


def steps_of(image: Image.Image) -> list[np.ndarray]:
    """For columns and for rows the steps to the next one, in values of 255: lines x parts of ``PART`` pixels, each the
    mean along the part, of the colour in which it is greatest."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    steps = []
    for turned in (pixels.swapaxes(0, 1), pixels):
        difference = np.diff(turned, axis=0)
        parts = difference.reshape(len(difference), -1, PART, 3).mean(axis=2)
        steps.append(np.abs(parts).max(axis=2))
    return steps


@dataclass(frozen=True)
class Seams:
    """Steps in the flat parts of a picture: the mean and the strongest at borders of tiles, and elsewhere."""

    mean_at: float
    mean_elsewhere: float
    most_at: float
    most_elsewhere: float

    @classmethod
    def of(cls, image: Image.Image, before: Image.Image, grid: TileGrid) -> Seams:
        """Of a picture that was ``before`` it was redrawn."""
        at, elsewhere = [], []
        for steps, own, spans in zip(steps_of(image), steps_of(before), (grid.columns, grid.rows), strict=True):
            lines = len(steps)
            borders = np.zeros(lines, bool)
            for end in {end for span in spans for end in span if 0 < end <= lines}:
                borders[end - 2 : end + 1] = True
            flat = own < FLAT
            flat[:PART], flat[-PART:] = False, False  # the model draws another edge at the edge of the picture
            at.append(steps[borders][flat[borders]])
            elsewhere.append(steps[~borders][flat[~borders]])
        at_border, inside = np.concatenate(at), np.concatenate(elsewhere)
        return cls(*(float(one) for one in (at_border.mean(), inside.mean(), at_border.max(), inside.max())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--vram", default="60MB", help="of the emulated card (60MB, which holds one pass of 1646 pixels a side)"
    )
    parser.add_argument("--side", type=int, default=416, help="of the picture that is redrawn (416)")
    parser.add_argument(
        "--methods", action="store_true", help="also tiles drawn by themselves, and one pass on the host"
    )
    parser.add_argument("--pictures", nargs="+", choices=PROMPTS, default=list(PROMPTS), help="(all)")
    parser.add_argument("-o", type=Path, default=Path(tempfile.gettempdir()) / "tiled-redraw", help="for the pictures")
    options = parser.parse_args()
    options.o.mkdir(parents=True, exist_ok=True)
    settings = replace(Settings(), model="embedded", dtype="float32", emulate_vram=options.vram, log_level="WARNING")
    service = start(settings)
    plan = service.runtime.plan
    print(f"card of {options.vram}: one pass of up to {plan.one_pass_pixels**0.5:.0f} pixels a side, ", end="")
    print(f"{plan.max_tile_batch} tiles at a time\n")
    columns = ("mean step at borders", "elsewhere", "strongest at borders", "elsewhere", "seconds", "peak of the card")
    print(f"| picture | method | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.pictures:
        request = ImageRequest(prompt=PROMPTS[name], width=256, height=256, seed=3, num_inference_steps=STEPS)
        redraw(service, name, request, parse_bytes(options.vram), options)


def redraw(service: Service, name: str, request: ImageRequest, vram: int, options: argparse.Namespace) -> None:
    stage = next(stage for stage in service.pipeline.stages if isinstance(stage, HiresStage))
    hires = Hires(scale=SCALE, strength=STRENGTH)
    device = service.runtime.transfers
    with service.runtime.activate():
        first = service.pipeline.run(request).pictures[0].image
        given = first.resize((options.side, options.side), Image.Resampling.LANCZOS)
        upscaled = stage.upscaled(given, hires)
        finished = replace(request, image=given, prompt_strength=0.0, hires=hires)
        begin = time.perf_counter()
        picture = service.pipeline.run(finished).pictures[0]
    seconds, peak = time.perf_counter() - begin, getattr(device, "peak_bytes", 0)
    assert picture.parameters["Hires tiles"] and peak <= vram, f"{peak} of {vram} bytes"
    grid = stage.grid(hires, picture.image.size)
    assert grid is not None
    before = upscaled.resize(grid.size, Image.Resampling.LANCZOS)
    before.save(options.o / f"{name}-upscaled.png")
    picture.image.save(options.o / f"{name}-tiles.png")
    report(name, f"tiles, {grid}", picture.image, before, grid, seconds, f"{peak / 1e6:.1f} MB")
    if options.methods:
        begin = time.perf_counter()
        with service.runtime.activate():
            pasted = by_themselves(stage, request, grid, upscaled)
        pasted.save(options.o / f"{name}-pasted.png")
        seconds = time.perf_counter() - begin
        report(name, "each tile by itself, feathered", pasted, before, grid, seconds, "")
    report(name, "only upscaled", before, before, grid, 0, "")


def by_themselves(stage: HiresStage, request: ImageRequest, grid: TileGrid, upscaled: Image.Image) -> Image.Image:
    alone = DenoiseRequest(
        (request.prompt,), (request.seed,), *grid.tile_size, STEPS, request.guidance_scale, strength=STRENGTH
    )
    tiles = [
        stage.service.generate(replace(alone, images=(tile,)), Monitor(Timeline()))[0] for tile in grid.cut(upscaled)
    ]
    return stitched(tiles, grid)


def report(
    name: str, method: str, image: Image.Image, before: Image.Image, grid: TileGrid, seconds: float, peak: str
) -> None:
    found = Seams.of(image, before, grid)
    means = f"{found.mean_at:.2f} | {found.mean_elsewhere:.2f}"
    most = f"{found.most_at:.2f} | {found.most_elsewhere:.2f}"
    print(f"| {name} | {method} | {means} | {most} | {seconds:.0f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
