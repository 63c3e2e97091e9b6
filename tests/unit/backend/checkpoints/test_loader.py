"""Weights: found by name, read into the right shape, and refused with the file's name when they are missing or
damaged."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from support.original_flux import original_layout
from transformers import T5EncoderModel

from backend.checkpoints.loader import load_diffusers_module, load_transformers_module
from backend.checkpoints.page_cache import BLOCK, read_ahead
from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.model_cache_optimizer import ModelCache
from backend.weights.resolver import resolve_file, resolve_model
from bench.speed.loading import LOADERS, NEEDS, drop_from_cache, from_pretrained, touch, work, write_checkpoint
from modules.app.model_files import find_files
from modules.families.flux1 import FLUX1
from modules.families.flux1 import single_file as flux_checkpoint
from modules.families.source import Source
from modules.gateway.memory import give_back

FOLDER = ROOT / "weights" / "embedded" / "flux"
EMBEDDED = replace(Settings(), model="embedded")


@pytest.fixture(scope="module")
def transformer_tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_component_is_the_one_that_diffusers_loads() -> None:
    ours = load_diffusers_module(AutoencoderKL, FOLDER / "vae", torch.float32).state_dict()
    theirs = AutoencoderKL.from_pretrained(
        FOLDER / "vae", torch_dtype=torch.float32, trust_remote_code=False
    ).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("prefix", ["", flux_checkpoint.PREFIX])
def test_a_single_file_in_the_original_layout_is_the_same_transformer(
    tmp_path: Path, transformer_tensors: dict[str, torch.Tensor], prefix: str
) -> None:
    save_file(
        {prefix + name: tensor.contiguous() for name, tensor in original_layout(transformer_tensors).items()},
        tmp_path / "flux.safetensors",
    )
    settings = replace(Settings(), model=str(tmp_path / "flux.safetensors"), base_model="embedded")
    files = find_files(settings)
    loaded = files.load("transformer", torch.float16)
    assert isinstance(loaded, FluxTransformer2DModel)
    assert loaded.config.axes_dims_rope == [4, 14, 14] and files.profile.inputs.guidance
    assert all(torch.equal(tensor, transformer_tensors[name]) for name, tensor in loaded.state_dict().items())


def test_a_single_file_in_diffusers_layout_works_too(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "mine.safetensors")
    files = find_files(replace(Settings(), model=str(tmp_path / "mine.safetensors"), base_model="embedded"))
    assert files.load("transformer", torch.float16).config.num_single_layers > 0  # type: ignore[union-attr]
    assert files.profile.name == "mine"


def test_a_single_file_asks_for_its_other_parts(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="base_model"):
        find_files(replace(Settings(), model=str(tmp_path / "mine.safetensors")))


def test_a_file_that_is_no_flux_transformer_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a Flux transformer"):
        flux_checkpoint.transformer_config({"conv_first.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="conv_first.weight"):
        flux_checkpoint.to_diffusers(
            {"double_blocks.0.img_mlp.0.weight": torch.zeros(1), "conv_first.weight": torch.zeros(1)}
        )


def test_auto_takes_the_best_family_that_is_there(tmp_path: Path) -> None:
    settings = replace(Settings(), weights_dir=str(tmp_path))
    assert resolve_model(settings) == tmp_path / "embedded" / "flux"
    for name in ("FLUX.1-schnell", "FLUX.1-dev"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
        assert resolve_model(settings) == tmp_path / name


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(WeightsError, match="model 'FLUX.2'"):
        resolve_model(replace(Settings(), model="FLUX.2"))
    with pytest.raises(WeightsError, match="upscaler: 4x-none.pth is not under weights/"):
        resolve_file("upscaler", "4x-none.pth", (), Settings())


def test_the_embedded_family_says_what_it_likes() -> None:
    profile = FLUX1.profile(Source(FOLDER))
    assert (profile.native, profile.tokens, profile.latent_factor, profile.steps) == (256, 40, 16, 28)


@pytest.mark.parametrize("damage", ["cut", "noise", "missing", "foreign"])
@pytest.mark.parametrize(("component", "kind"), [("vae", AutoencoderKL), ("text_encoder_2", T5EncoderModel)])
def test_a_damaged_file_is_named_and_nothing_is_loaded(tmp_path: Path, component: str, kind: type, damage: str) -> None:
    shutil.copytree(FOLDER / component, tmp_path / component)
    file = next((tmp_path / component).glob("*.safetensors"))
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        file.write_bytes(b"\xff" * 16 + data[16:])
    elif damage == "missing":
        file.unlink()
    else:
        save_file({"conv_first.weight": torch.zeros(2)}, file)
    loader = load_diffusers_module if kind is AutoencoderKL else load_transformers_module
    with pytest.raises(WeightsError) as caught:
        loader(kind, tmp_path / component, torch.float32)
    assert component in str(caught.value) and str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_is_loaded_once_and_counted() -> None:
    loads: list[int] = []

    def load() -> torch.nn.Module:
        loads.append(1)
        return torch.nn.Linear(4, 4)

    cache = ModelCache(torch.device("cpu"))
    cache.register("linear", load)
    for _ in range(3):
        with cache.on_device("linear") as (module,), cache.on_device("linear") as (again,):
            assert module is again and not module.training
    stats = cache.stats()
    assert (len(loads), stats.misses, stats.hits, stats.bytes_moved) == (1, 1, 5, 80)
    assert "linear" in stats.table()


def test_files_are_read_ahead_once(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(os.urandom(3 * BLOCK + 5))
    drop_from_cache(tmp_path)
    assert BLOCK <= read_ahead([file]) <= file.stat().st_size  # the kernel may have gone on by itself
    assert read_ahead([file]) == 0


def test_a_part_that_is_missing_in_the_cache_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(os.urandom(3 * BLOCK))
    drop_from_cache(tmp_path)
    with file.open("rb") as opened:
        opened.read(BLOCK)
    assert BLOCK <= read_ahead([file]) <= 2 * BLOCK  # the kernel may have gone on by itself


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    assert write_checkpoint(folder, 2e7) > 1e7
    return folder


@pytest.mark.parametrize("loader", [name for name in LOADERS if name not in NEEDS])
def test_the_loaders_of_the_bench_agree(checkpoint: Path, loader: str) -> None:
    assert touch(LOADERS[loader](checkpoint)) == touch(from_pretrained(checkpoint))


def test_loading_holds_the_weights_once(tmp_path: Path) -> None:
    size = write_checkpoint(tmp_path, 2e8)
    give_back()  # else memory that is free is filled unseen
    # the blocks of the readers count here, beside a checkpoint that is far smaller than any that needs them
    assert size < work("ours", tmp_path)["peak_bytes"] < 1.1 * size + 4 * BLOCK + 30e6
