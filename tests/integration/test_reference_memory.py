"""What reference pictures and masks cost a model that reads them as tokens is in the plan of the first pass: measured on
the emulated device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.emulated_runs import EmulatedPipeline, emulated_pipeline
from support.flux_pictures import picture
from support.pictures import PROMPT
from support.small_flux2 import write_klein

from backend.core.cancellation import never_canceled
from backend.core.settings import Settings
from backend.planning.activations import Workload, prediction_steps
from backend.planning.model_specs import ModelSpec
from modules.app.model_files import find_files
from modules.diffusion.denoise_request import DenoiseRequest
from modules.pipeline.generate import GenerateStage

LONG = " ".join([PROMPT] * 8)
"""As many tokens as the plan counts."""


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> tuple[EmulatedPipeline, ModelSpec]:
    folder = write_klein(tmp_path_factory.mktemp("klein"))
    made = emulated_pipeline(None, 10**9, tmp_path_factory.mktemp("run"), str(folder))
    return made, find_files(replace(Settings(), model=str(folder))).spec()


@pytest.mark.parametrize(("references", "masked"), [(0, False), (1, False), (5, False), (0, True), (2, True)])
def test_the_first_pass_is_planned_with_what_it_reads(
    klein: tuple[EmulatedPipeline, ModelSpec], references: int, masked: bool
) -> None:
    made, spec = klein
    stage, image = made.pipeline.stages[0], picture().crop((0, 0, 128, 128))
    assert isinstance(stage, GenerateStage)
    asked = DenoiseRequest((LONG,), (1,), 128, 128, 2, 1.0, references=((image,) * references,))
    if masked:
        asked = replace(asked, images=(image,), masks=(Image.new("L", image.size, 255),), strength=0.5)
    with made.device, torch.inference_mode():
        embeddings = stage.service.encode([LONG])
        given = stage.service.encode_given(asked, never_canceled)
        stage.service.denoise(asked, embeddings, given, None)
        held = made.device.allocated_bytes
        made.device.reset_peak()
        stage.service.denoise(asked, embeddings, given, None)
    workload = Workload(128, 128, references=references + masked)
    (step,) = (one for one in prediction_steps(workload, spec) if one.stage == "denoise")
    assert step.memory == pytest.approx(made.device.peak_bytes - held, rel=0.1)
    read = [one for one in prediction_steps(workload, spec) if one.stage == "encode_image"]
    assert sum(one.forwards for one in read) == references + masked


def test_a_service_has_room_for_one_picture_to_look_at(tmp_path: Path) -> None:
    files = find_files(replace(Settings(), model=str(write_klein(tmp_path))))
    planned = files.workload(Settings())
    assert (planned.references, files.spec().pictures.most) == (1, 5)
    steps = {one.stage: one for one in prediction_steps(planned, files.spec())}
    alone = {one.stage: one for one in prediction_steps(replace(planned, references=0), files.spec())}
    # a detail is read twice: as it was, and as it is repainted
    assert alone["denoise"].memory < steps["denoise"].memory == steps_of_detail(files.spec(), planned)


def steps_of_detail(spec: ModelSpec, workload: Workload) -> int:
    """Bytes of activations of the detail pass at the size of the picture."""
    steps = prediction_steps(replace(workload, detail_crop=workload.width), spec)
    return max(one.memory for one in steps if one.stage == "detail" and one.components == (spec.denoiser,))
