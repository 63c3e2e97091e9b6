"""FLUX.2 klein and Z-Image in every placement of the memory plan, on the emulated device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import Run, run_emulated
from support.pictures import PROMPT
from support.small_flux2 import write_klein
from support.small_z_image import write_z_image

from backend.core.settings import Settings
from backend.planning.costs import KINDS, Kind, Placement
from modules.app.model_files import find_files
from modules.request.image_request import ImageRequest

REQUEST = ImageRequest(" ".join([PROMPT] * 8), 256, 256, seed=3, num_inference_steps=2, scale=1)
"""Of a length for which the plan counts: as many tokens as are read."""


@pytest.fixture(scope="module", params=[write_klein, write_z_image], ids=["flux2-klein", "z-image"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random weights of a family."""
    written: Path = request.param(tmp_path_factory.mktemp("model"))
    return written


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Run]:
    """The same request with the models in every placement."""
    found = find_files(replace(Settings(), model=str(folder))).spec()

    def placed(kind: Kind) -> Run:
        lighter: Kind = "model offload" if kind != "resident" else "resident"
        placements = {
            name: Placement(kind, "fp32", kept_blocks=len(component.blocks) // 2 * (kind == "partial"))
            if component.blocks
            else Placement(lighter, "fp32")
            for name, component in found.components.items()
        }
        return run_emulated(placements, 10**9, tmp_path_factory.mktemp(kind), str(folder), REQUEST)

    return {kind: placed(kind) for kind in KINDS}


def test_every_placement_gives_the_same_bits(runs: dict[Kind, Run]) -> None:
    for kind, one in runs.items():
        assert np.array_equal(one.picture, runs["resident"].picture), kind
    assert runs["resident"].picture.std() > 5


def test_the_peak_is_predicted_within_a_tenth(runs: dict[Kind, Run]) -> None:
    for kind, one in runs.items():
        assert one.predicted_peak == pytest.approx(one.device.peak_bytes, rel=0.1), kind
