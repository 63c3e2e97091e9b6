"""FLUX.2 klein and Z-Image in every placement of the memory plan, on the emulated device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.emulated_runs import emulated_pipeline
from support.people import portraits
from support.pictures import PROMPT
from support.slow import sampled
from support.small_flux2 import write_klein
from support.small_z_image import write_z_image

from backend.core.settings import Settings
from backend.planning.costs import KINDS, Kind, Placement
from modules.app.model_files import find_files
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.picture_latents import PictureLatents
from modules.pipeline.generate import GenerateStage
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import Hires, ImageRequest

LONG = " ".join([PROMPT] * 8)
"""Of a length for which the plan counts: as many tokens as are read."""
DRAWN = ImageRequest(
    LONG, 160, 96, seed=3, num_inference_steps=2, scale=1, hires=Hires(1.5, upscaler="Lanczos", strength=0.6)
)
REPAINTED = ImageRequest(
    LONG,
    128,
    128,
    seed=3,
    num_inference_steps=2,
    scale=2,
    image=portraits(1, seed=3)[0].resize((128, 128)),
    prompt_strength=0.0,
    adetailer=(AdetailerUnit(),),
)
"""Nothing but a face changes, which random weights would not draw."""


@pytest.fixture(scope="module", params=sampled([write_klein, write_z_image], 2), ids=["flux2-klein", "z-image"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random weights of a family."""
    written: Path = request.param(tmp_path_factory.mktemp(request.param.__name__))
    return written


@dataclass(frozen=True)
class Placed:
    """What a placement draws, and its peak beside that of the plan."""

    pictures: tuple[np.ndarray, np.ndarray]
    peak: int
    predicted: int


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Placed]:
    """The same requests with the models in every placement."""
    found = find_files(replace(Settings(), model=str(folder))).spec()

    def placed(kind: Kind) -> Placed:
        lighter: Kind = "model offload" if kind != "resident" else "resident"
        placements = {
            name: Placement(kind, "fp32", kept_blocks=len(component.blocks) // 2 * (kind == "partial"))
            if component.blocks
            else Placement(lighter, "fp32")
            for name, component in found.components.items()
        }
        made = emulated_pipeline(placements, 10**9, tmp_path_factory.mktemp(kind), str(folder), REPAINTED)
        pictures = made.run(DRAWN), made.run(REPAINTED)
        made.models.release()
        return Placed(pictures, made.device.peak_bytes, made.predicted_peak)

    return {kind: placed(kind) for kind in KINDS}


def test_every_placement_gives_the_same_bits(runs: dict[Kind, Placed]) -> None:
    drawn, repainted = runs["resident"].pictures
    for kind, one in runs.items():
        assert np.array_equal(one.pictures[0], drawn) and np.array_equal(one.pictures[1], repainted), kind
    assert drawn.shape == (144, 240, 3) and drawn.std() > 5
    assert repainted.shape == (256, 256, 3)


def test_the_peak_is_predicted_within_a_tenth(runs: dict[Kind, Placed], folder: Path) -> None:
    """But for the room that the plan keeps for the embeddings of further prompts."""
    settings = replace(Settings(), model=str(folder))
    others = (settings.prompt_cache_entries - 1) * find_files(settings).spec().prompt_bytes
    for kind, one in runs.items():
        assert one.predicted - others == pytest.approx(one.peak, rel=0.1), kind


def test_the_memory_of_every_step_is_predicted_within_a_tenth(folder: Path, tmp_path: Path) -> None:
    """At the native size and at twice of it. The autoencoder's is what its channels say, however few they are."""
    made = emulated_pipeline(None, 10**9, tmp_path, str(folder))
    stage, costs = made.pipeline.stages[0], find_files(replace(Settings(), model=str(folder))).spec().costs
    assert isinstance(stage, GenerateStage)
    service = stage.service

    def added(run: Callable[[], object]) -> int:
        run()
        before = made.device.allocated_bytes
        made.device.reset_peak()
        run()
        return made.device.peak_bytes - before

    prompts = (f"prompt {index}" for index in range(100))  # shorter than the limit, so there is a mask
    with made.device, torch.inference_mode():
        assert added(lambda: service.encode([next(prompts)])) == pytest.approx(costs["encode"].memory(512), rel=0.1)
        embeddings = service.encode([LONG])
        for side in (128, 256):
            asked = DenoiseRequest((LONG,), (1,), side, side, 2, 1.0)
            found = added(lambda asked=asked: service.denoise(asked, embeddings, PictureLatents(), None))
            assert found == pytest.approx(costs["denoise"].memory(512 + (side // 16) ** 2), rel=0.1)
            latents = service.denoise(asked, embeddings, PictureLatents(), None)
            found = added(lambda side=side, latents=latents: service.decode(latents, side, side))
            assert found == pytest.approx(costs["decode"].memory(side**2), rel=0.1)
