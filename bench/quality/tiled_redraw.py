"""Hires fix at four times the size on an emulated card that does not hold one pass: seams, memory, seconds.

``python -m bench.quality.tiled_redraw [--vram 38MB] [--pictures face sky] [--methods] [-o FOLDER]``. The embedded models
draw a portrait and a sky, then redraw them at four times the size. A seam is a step that goes the same way along the whole side of a tile;
it is compared with the strongest such step beside the borders, which belongs to the picture. ``--methods`` compares
with what the script Ultimate SD upscale does: every tile drawn by itself and pasted with a feather.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.core.units import parse_bytes
from modules.app.service import Service, start
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.tile_batches import stitched
from modules.diffusion.tiles import TileGrid
from modules.pipeline.hires import HiresStage
from modules.request.image_request import Hires, ImageRequest

PROMPTS = {
    "face": "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background",
    "sky": "a portrait of a man with black hair, blue background",
}
STEPS, STRENGTH, SCALE = 6, 0.4, 4.0
NEAR = 16
"""Pixels beside a border whose steps it is compared with."""


def steps_across(image: Image.Image, grid: TileGrid) -> tuple[float, float]:
    """The strongest step across a border of tiles, and the strongest near it, in values of 255: each the mean along the
    side of a tile, of the colour in which it is greatest."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    found = []
    for turned, across, along in (
        (pixels.swapaxes(0, 1), grid.columns, grid.rows),
        (pixels, grid.rows, grid.columns),
    ):
        difference = np.diff(turned, axis=0)
        sides = np.stack([difference[:, start:stop].mean(axis=1) for start, stop in along])
        strongest = np.abs(sides).max(axis=(0, 2))
        borders = {end - 1 for span in across for end in span if 0 < end < len(turned)}
        near = {line + offset for line in borders for offset in range(-NEAR, NEAR + 1)} - borders
        found.append((max(strongest[list(borders)]), max(strongest[[line for line in near if line < len(strongest)]])))
    return float(max(at for at, _ in found)), float(max(beside for _, beside in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--vram", default="38MB", help="of the emulated card (38MB, which holds one pass of 951 pixels a side)"
    )
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
    print("| picture | method | step at borders | step beside them | seconds | peak of the card |")
    print("|---|---|---|---|---|---|")
    for name in options.pictures:
        request = ImageRequest(prompt=PROMPTS[name], width=256, height=256, seed=3, num_inference_steps=STEPS)
        redraw(service, name, request, parse_bytes(options.vram), options)


def redraw(service: Service, name: str, request: ImageRequest, vram: int, options: argparse.Namespace) -> None:
    stage = next(stage for stage in service.pipeline.stages if isinstance(stage, HiresStage))
    hires = Hires(scale=SCALE, strength=STRENGTH)
    device = service.runtime.transfers
    begin = time.perf_counter()
    with service.runtime.activate():
        picture = service.pipeline.run(replace(request, hires=hires)).pictures[0]
    seconds, peak = time.perf_counter() - begin, getattr(device, "peak_bytes", 0)
    assert picture.parameters["Hires tiles"] and peak <= vram, f"{peak} of {vram} bytes"
    grid = stage.grid(hires, picture.image.size)
    assert grid is not None
    picture.image.save(options.o / f"{name}-tiles.png")
    report(name, f"tiles, {grid}", picture.image, grid, seconds, f"{peak / 1e6:.1f} MB")
    if options.methods:
        with service.runtime.activate():
            first = service.pipeline.run(request).pictures[0].image
            upscaled = stage.upscaled(first, hires)
            begin = time.perf_counter()
            alone = DenoiseRequest(
                (request.prompt,),
                (request.seed,),
                *grid.tile_size,
                STEPS,
                request.guidance_scale,
                strength=STRENGTH,
            )
            tiles = [
                stage.service.generate(replace(alone, images=(tile,)), Timeline())[0] for tile in grid.cut(upscaled)
            ]
        pasted = stitched(tiles, grid)
        pasted.save(options.o / f"{name}-pasted.png")
        upscaled.save(options.o / f"{name}-upscaled.png")
        report(name, "each tile by itself, feathered", pasted, grid, time.perf_counter() - begin, "")
        report(name, "only upscaled", upscaled, grid, 0, "")


def report(name: str, method: str, image: Image.Image, grid: TileGrid, seconds: float, peak: str) -> None:
    at, beside = steps_across(image, grid)
    print(f"| {name} | {method} | {at:.2f} | {beside:.2f} | {seconds:.0f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
