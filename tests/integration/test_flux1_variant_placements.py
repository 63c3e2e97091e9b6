"""Models that read pictures, in every placement of the memory plan, on the emulated device: FLUX.1 Fill, whose tokens
have more channels, and Kontext, which has more tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.emulated_runs import Run, emulated_pipeline, run_emulated
from support.flux_pictures import picture
from support.pictures import PROMPT
from support.small_flux import write_small_flux

from backend.core.cancellation import never_canceled
from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.planning.costs import Kind, Placement
from modules.app.model_files import find_files
from modules.pipeline.base import ImageBatch, no_progress
from modules.pipeline.generate import GenerateStage
from modules.request.image_request import ImageRequest

KINDS: tuple[Kind, ...] = ("resident", "partial", "layer offload")
"""Those that differ most; FLUX.1 has all of them in ``test_placements.py``."""
REQUEST = ImageRequest(PROMPT, 256, 256, seed=3, num_inference_steps=2, guidance_scale=30.0)


def given(variant: str) -> dict[str, object]:
    if variant == "kontext":
        return {"references": (picture(),)}
    mask = Image.new("L", (256, 256))
    mask.paste(255, (50, 30, 131, 190))
    return {"image": picture(), "mask": mask, "prompt_strength": 1.0}


@pytest.fixture(scope="module", params=["fill", "kontext"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Run]:
    """The same request with the models in every placement."""
    folder = write_small_flux(tmp_path_factory.mktemp("models") / request.param, request.param)
    components = find_files(replace(Settings(), model=str(folder))).spec().components
    asked = replace(REQUEST, **given(request.param))

    def placed(kind: Kind) -> Run:
        lighter: Kind = "model offload" if kind != "resident" else "resident"
        placements = {
            name: Placement(kind, "fp32", kept_blocks=1 * (kind == "partial"))
            if component.blocks
            else Placement(lighter, "fp32")
            for name, component in components.items()
        }
        return run_emulated(placements, 10**9, tmp_path_factory.mktemp("run"), str(folder), asked)

    return {kind: placed(kind) for kind in KINDS}


def test_every_placement_gives_the_same_bits(runs: dict[Kind, Run]) -> None:
    for kind, one in runs.items():
        assert np.array_equal(one.picture, runs["resident"].picture), kind


def test_the_peak_is_predicted_within_a_tenth(runs: dict[Kind, Run]) -> None:
    for kind, one in runs.items():
        assert one.predicted_peak == pytest.approx(one.device.peak_bytes, rel=0.1), kind


@pytest.mark.parametrize("variant", ["fill", "kontext"])
def test_what_a_step_needs_is_predicted_with_the_pictures_that_it_reads(
    variant: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_small_flux(tmp_path_factory.mktemp("models") / variant, variant)
    made = emulated_pipeline(None, 10**9, tmp_path_factory.mktemp("run"), str(folder), REQUEST)
    stage = made.pipeline.stages[0]
    assert isinstance(stage, GenerateStage)
    request, batch = replace(REQUEST, **given(variant)), ImageBatch((), Timeline(), no_progress)
    asked = stage.denoise_request(batch, request, (256, 256), request.image, request.mask, None)
    with made.device, torch.inference_mode():
        embeddings = stage.service.encode([PROMPT])
        pictures = stage.service.encode_given(asked, never_canceled)
        held = made.device.allocated_bytes
        made.device.reset_peak()
        stage.service.denoise(asked, embeddings, pictures, None)
    read = sum(part.nbytes for part in (pictures.channels, pictures.tokens) if part is not None)
    spec = find_files(replace(Settings(), model=str(folder))).spec()
    tokens = spec.text_tokens + spec.pictures.needed * spec.pictures.tokens + (256 // spec.token_pixels) ** 2
    needed = made.device.peak_bytes - held + read
    assert spec.costs["denoise"].memory(tokens) == pytest.approx(needed, rel=0.1)
