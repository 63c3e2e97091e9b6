"""What SDXL and SD 1.5 weigh and cost is read from headers and configurations; for the published ones it is what was
counted on the real classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import original_names
from support.headers import write_component, write_header
from support.model_specs import KNOWN
from support.specs import assert_alike

from bench.speed.stable_diffusion import FULL, build
from bench.support.tiny_models import write_tiny_model
from modules.families.registry import identify
from modules.families.source import INDEX, Source

PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "sd15": "StableDiffusionPipeline"}


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_folder_is_counted_as_the_published_model(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "mine"
    for component, sizes in FULL[family].items():
        with torch.device("meta"):
            write_component(folder / component, build(component, sizes), **sizes)
    (folder / INDEX).write_text(json.dumps({"_class_name": PIPELINES[family]}))
    model = identify(Source(folder))
    assert model.family.name == family
    # the published autoencoder was counted at 1024 x 1024, where attention is a ninth of the work, not a thirtieth
    tokens = (model.profile.native // 8) ** 2
    assert_alike(model.family.spec(model.source, "bf16"), KNOWN[family], tolerance=0.09, image_tokens=tokens)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_single_file_is_counted_as_the_folder_of_the_same_model(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "parts"
    write_tiny_model(folder, family)
    source = Source(folder)
    parts = {name: source.folder_header(name).shapes for name in ("unet", "vae", "text_encoder")}
    empty = {name: {key: torch.empty(shape) for key, shape in shapes.items()} for name, shapes in parts.items()}
    first = "cond_stage_model.transformer." if family == "sd15" else "conditioner.embedders.0.transformer."
    tensors = {**original_names.unet(empty["unet"], layers=1), **original_names.vae(empty["vae"], blocks=4)}
    tensors |= {first + name: tensor for name, tensor in empty["text_encoder"].items()}
    if family == "sdxl":
        second = {key: torch.empty(shape) for key, shape in source.folder_header("text_encoder_2").shapes.items()}
        tensors |= original_names.open_clip(second)
    file = write_header(tmp_path / "mine.safetensors", {name: tuple(t.shape) for name, t in tensors.items()})
    single, whole = (identify(one) for one in (Source(file, folder), source))
    found, known = (one.family.spec(one.source, "fp32") for one in (single, whole))
    assert found.costs == known.costs
    for name in ("unet", "vae"):
        assert found.components[name].parameters == known.components[name].parameters
        assert sorted(found.components[name].blocks) == sorted(known.components[name].blocks)
        assert found.components[name].on_disk == "fp16"
