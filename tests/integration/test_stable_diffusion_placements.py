"""SDXL and SD 1.5 in every placement of the memory plan, on the emulated device; the plan counts the real models right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import Run, run_emulated
from support.model_specs import KNOWN
from support.pictures import PROMPT

from backend.core.settings import Settings
from backend.offload.placements import block_modules
from backend.planning.costs import KINDS, Kind, Placement
from bench.speed.stable_diffusion import count, without_data, write
from modules.app.model_files import find_files
from modules.request.image_request import ImageRequest

FAMILIES = ("sdxl", "sd15")
SOME: tuple[Kind, ...] = ("resident", "layer offload")
"""For SD 1.5, whose UNet is of the same class; those that differ most."""


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random weights of a family."""
    folder = tmp_path_factory.mktemp("models") / f"small-{request.param}"
    write(folder, request.param)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Run]:
    """The same request with the models in every placement, on an emulated device."""
    found = find_files(replace(Settings(), model=str(folder))).spec()
    request = ImageRequest(PROMPT, 256, 256, seed=3, num_inference_steps=2, guidance_scale=5.0)

    def placed(kind: Kind) -> Run:
        lighter: Kind = "model offload" if kind != "resident" else "resident"
        placements = {
            name: Placement(kind, "fp32", kept_blocks=len(component.blocks) // 2 * (kind == "partial"))
            if component.blocks
            else Placement(lighter, "fp32")
            for name, component in found.components.items()
        }
        return run_emulated(placements, 10**9, tmp_path_factory.mktemp(kind), str(folder), request)

    return {kind: placed(kind) for kind in (KINDS if folder.name == "small-sdxl" else SOME)}


def test_every_placement_gives_the_same_bits(runs: dict[Kind, Run]) -> None:
    for kind, one in runs.items():
        assert np.array_equal(one.picture, runs["resident"].picture), kind


def test_the_peak_is_predicted_within_a_tenth(runs: dict[Kind, Run]) -> None:
    for kind, one in runs.items():
        assert one.predicted_peak == pytest.approx(one.device.peak_bytes, rel=0.1), kind


@pytest.mark.parametrize("family", FAMILIES)
def test_the_real_models_are_as_the_plan_counts_them(family: str) -> None:
    unet, known = without_data(family), KNOWN[family]
    assert sum(p.numel() for p in unet.parameters()) == known.components["unet"].parameters
    sizes = tuple(sum(p.numel() for p in block.parameters()) for block in block_modules(unet))
    assert sizes == known.components["unet"].blocks
    one, cost = count(family, unet, known.native), known.costs["denoise"]
    assert cost.work(one.x) == pytest.approx(one.operations, rel=0.02)
    assert cost.memory(one.x) == pytest.approx(one.peak, rel=0.02)
