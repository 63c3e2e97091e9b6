"""Hires fix in tiles, on the real embedded models: when, what it looks like, and what the file says."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import PROMPT
from support.predictions import pixels, predicted
from support.requests_data import DETECTORS, EMBEDDED, INPUTS

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.timeline import Timeline
from modules.app.service import Service
from modules.diffusion.tiles import TileGrid
from modules.output.image_writer import read_parameters
from modules.pipeline.base import ImageBatch, Picture, no_progress
from modules.pipeline.hires import HiresStage
from modules.request.from_record import inputs_of_record
from modules.request.image_request import Hires, ImageRequest
from modules.request.parser import build_request
from training.data.drawing import draw_scene
from training.data.scene import sample_scene

HIRES = Hires(scale=1.5, tiles="on", steps=4, strength=0.5)
REQUEST = ImageRequest(prompt=PROMPT, width=256, height=256, seed=1, num_inference_steps=4, hires=HIRES)


@pytest.fixture(scope="module")
def stage(service: Service) -> HiresStage:
    return next(stage for stage in service.pipeline.stages if isinstance(stage, HiresStage))


@pytest.fixture(scope="module")
def drawn() -> ImageBatch:
    """A portrait before a plain background: its face lies where four tiles meet."""
    return ImageBatch((Picture(draw_scene(sample_scene(random.Random(5), (256, 256))), 1),), Timeline(), no_progress)


@pytest.fixture(scope="module")
def redrawn(stage: HiresStage, drawn: ImageBatch) -> Picture:
    return stage.run(drawn, REQUEST).pictures[0]


def test_no_seam_is_seen_in_the_sky_or_in_the_face(stage: HiresStage, redrawn: Picture, drawn: ImageBatch) -> None:
    grid = stage.grid(HIRES, redrawn.image.size)
    assert grid is not None and str(grid) == "2x2" and redrawn.parameters["Hires tiles"] == "2x2"
    at, beside = steps_across(redrawn.image, grid)
    assert at <= beside, "a seam is stronger than the picture's own gradient"
    upscaled = pixels(stage.upscaled(drawn.pictures[0].image, HIRES))
    assert 0 < np.abs(pixels(redrawn.image) - upscaled).mean() < 25, "the scene stays"
    cut = redrawn.image.copy()
    cut.paste(tuple(int(c) + 12 for c in np.asarray(cut).mean(axis=(0, 1))), (128, 0, 256, 128))
    assert steps_across(cut, grid)[0] > at, "the figure sees a seam"


def steps_across(image: Image.Image, grid: TileGrid, near: int = 16) -> tuple[float, float]:
    """The strongest step across a border of tiles, and the strongest within ``near`` pixels of one, in values of 255:
    each the mean along the side of a tile, of the colour in which it is greatest."""
    values = pixels(image).astype(np.float32)
    steps_at, steps_near = [], []
    for turned, across, along in (
        (values.swapaxes(0, 1), grid.columns, grid.rows),
        (values, grid.rows, grid.columns),
    ):
        difference = np.diff(turned, axis=0)
        sides = np.stack([difference[:, start:stop].mean(axis=1) for start, stop in along])
        strongest = np.abs(sides).max(axis=(0, 2))
        borders = {end - 1 for span in across for end in span if 0 < end < len(turned)}
        beside = {line + offset for line in borders for offset in range(-near, near + 1)} - borders
        steps_at.append(max(strongest[list(borders)]))
        steps_near.append(max(strongest[[line for line in beside if line < len(strongest)]]))
    return float(max(steps_at)), float(max(steps_near))


def test_a_prompt_for_each_tile_changes_its_own_place(stage: HiresStage, redrawn: Picture, drawn: ImageBatch) -> None:
    own = replace(HIRES, tiles="auto", prompt="a blue hat [SEP] [PROMPT]")
    changed = stage.run(drawn, replace(REQUEST, hires=own)).pictures[0]
    assert changed.parameters["Hires tiles"] == "2x2" and changed.parameters["Hires prompt"] == own.prompt
    difference = np.abs(pixels(changed.image) - pixels(redrawn.image)).mean(axis=2)
    assert difference[:96, :96].mean() > 1.5 * difference[-96:, -96:].mean()


def test_a_cancellation_ends_it_between_two_batches_of_tiles(stage: HiresStage, drawn: ImageBatch) -> None:
    single = HiresStage(stage.service, stage.upscale_service, tile_batch=1)
    told: list[tuple[int, int]] = []

    def progress(name: str, done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        single.run(replace(drawn, progress=progress), REQUEST)
    assert told == [(1, 8), (2, 8)], "two steps of four tiles"


def test_where_one_pass_runs_out_of_memory_tiles_take_its_place(
    stage: HiresStage, redrawn: Picture, drawn: ImageBatch
) -> None:
    """The error is thrown where a card would throw it; everything after it is real."""
    asked = replace(REQUEST, hires=replace(HIRES, tiles="auto"))
    assert stage.grid(replace(HIRES, tiles="auto"), (384, 384)) is None

    def full(module: torch.nn.Module, inputs: tuple[object, ...], named: dict[str, torch.Tensor]) -> None:
        if named["hidden_states"].shape[1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with stage.service.models.on_device("transformer") as (transformer,):
        hook = transformer.register_forward_pre_hook(full, with_kwargs=True)
    try:
        instead = stage.run(drawn, asked).pictures[0]
    finally:
        hook.remove()
        stage.service.fallback.learned.clear()
    assert instead.parameters["Hires tiles"] == "2x2"
    assert np.array_equal(pixels(instead.image), pixels(redrawn.image))


@pytest.mark.parametrize(
    ("tiles", "size", "one_pass", "expected"),
    [
        ("auto", (512, 512), 10**9, None),
        ("auto", (544, 512), 10**9, "3x3"),
        ("auto", (384, 384), 383 * 384, "2x2"),
        ("auto", (384, 384), 384 * 384, None),
        ("on", (384, 256), 10**9, "2x1"),
        ("on", (256, 256), 10**9, None),
        ("off", (1024, 1024), 0, None),
    ],
)
def test_when_tiles_are_drawn(
    stage: HiresStage, tiles: str, size: tuple[int, int], one_pass: int, expected: str | None
) -> None:
    """Beyond twice the native side, where one pass does not fit, or where they are asked for."""
    planned = HiresStage(stage.service, stage.upscale_service, one_pass_pixels=one_pass)
    grid = planned.grid(Hires(tiles=tiles), size)  # type: ignore[arg-type]
    assert (grid and str(grid)) == expected
    assert planned.grid(Hires(tiles=tiles, strength=0), size) is None  # type: ignore[arg-type]


def test_the_file_gives_the_inputs_again(service: Service) -> None:
    images, metrics, files = predicted(
        service,
        enable_hr=True,
        hr_scale=1.25,
        hr_tiles="on",
        hr_prompt="a blue hat",
        scale=1,
        adetailer=False,
        hr_steps=1,
    )
    assert images[0].size == (320, 320) and metrics["hires.stitch.seconds"] > 0
    text, record = read_parameters(files[0])
    assert "Hires tiles: 2x2" in text and "Hires prompt: a blue hat" in text
    again = inputs_of_record(record, InputSchema().properties).inputs
    assert (again["hr_tiles"], again["hr_prompt"]) == ("on", "a blue hat")


def test_what_is_not_for_tiles_is_told(stage: HiresStage) -> None:
    asked = replace(REQUEST, go_fast=True, hires=replace(HIRES, prompt="a [SEP] b [SEP] c [SEP] d [SEP] e"))
    told = " / ".join(stage.notices(asked))
    assert "go_fast: is not used in the tiles" in told and "hr_prompt: the last 1 prompts are not used" in told


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hr_tiles": "yes"}, "hr_tiles: must be"),
        ({"hr_tiles": "off", "hr_prompt": "a [SEP] b"}, "hr_prompt: has .SEP., which is for tiles"),
        ({"hr_prompt": "a [SEP] [SKIP]"}, "hr_prompt: has .SKIP., which is for the detail pass"),
        ({"hr_prompt": "[PROMPT]" * 2000, "prompt": "a fox " * 5}, "hr_prompt: is .* characters long"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_line(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=f"^{problem}"):
        build_request({**INPUTS, "enable_hr": True, **changes}, EMBEDDED, DETECTORS)
