"""Z-Image from files in the names of its first code and of ComfyUI gives the pictures of its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.model_pictures import drawn, found_model
from support.original_z_image import original_names
from support.small_z_image import write_z_image

from backend.core.errors import WeightsError
from modules.families.registry import named_file

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_z_image(tmp_path_factory.mktemp("z-image") / "folder")


@pytest.fixture(scope="module")
def tensors(folder: Path) -> Tensors:
    return original_names(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_alone_takes_the_rest_from_its_folder(
    folder: Path, tensors: Tensors, tmp_path: Path, prefix: str
) -> None:
    file = tmp_path / "z_image_turbo.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
    assert named_file(file) == "a model of the family z-image"
    found = found_model(file, folder)
    assert found.spec("fp32").components == found_model(folder).spec("fp32").components
    one, other = drawn(found), drawn(found_model(folder))
    assert np.abs(one - other).max() <= 1 and one.std() > 5


def test_turbo_is_told_by_the_name_of_its_file(folder: Path, tensors: Tensors, tmp_path: Path) -> None:
    """The tensors of both have the same shapes."""
    for name, steps in (("z_image_turbo_bf16", 8), ("z_image_bf16", 50)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        assert found_model(tmp_path / f"{name}.safetensors", folder).profile.steps == steps, name


def test_omni_is_refused(folder: Path, tensors: Tensors, tmp_path: Path) -> None:
    save_file({**tensors, "siglip_pad_token": torch.zeros(1, 48)}, tmp_path / "omni.safetensors")
    with pytest.raises(WeightsError, match=r"^omni.safetensors is Z-Image Omni, which reads pictures with SigLIP"):
        found_model(tmp_path / "omni.safetensors", folder)
