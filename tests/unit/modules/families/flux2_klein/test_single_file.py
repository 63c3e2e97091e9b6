"""FLUX.2 klein from files in the names of black-forest-labs and ComfyUI gives the pictures of its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.gguf_files import write_gguf
from support.model_pictures import drawn, found_model
from support.original_flux2 import autoencoder_names, transformer_names
from support.small_flux2 import write_klein

from backend.core.errors import WeightsError
from modules.families.registry import named_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_klein(tmp_path_factory.mktemp("klein") / "folder")


def tensors_of(folder: Path, component: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / component).glob("*.safetensors")
    return load_file(file)


def save(path: Path, tensors: dict[str, torch.Tensor], prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def assert_same(one: np.ndarray, other: np.ndarray) -> None:
    """To the last step of rounding, which depends on where tensors begin in memory."""
    assert np.abs(one - other).max() <= 1 and one.std() > 5


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_alone_takes_the_rest_from_its_folder(folder: Path, tmp_path: Path, prefix: str) -> None:
    file = save(tmp_path / "klein.safetensors", transformer_names(tensors_of(folder, "transformer")), prefix)
    assert named_file(file) == "a model of the family flux2-klein"
    assert_same(drawn(found_model(file, folder)), drawn(found_model(folder)))


def test_separate_files_in_all_names_of_their_first_code(folder: Path, tmp_path: Path) -> None:
    """The folder beside them has only configurations and the tokenizer."""
    parts = tmp_path / "parts"
    save(parts / "diffusion_models" / "klein.safetensors", transformer_names(tensors_of(folder, "transformer")))
    save(parts / "text_encoders" / "qwen.safetensors", tensors_of(folder, "text_encoder"))
    save(parts / "vae" / "flux2-vae.safetensors", autoencoder_names(tensors_of(folder, "vae"), 4))
    shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    found = found_model(parts, tmp_path / "base")
    assert found.spec("fp32").components == found_model(folder).spec("fp32").components
    assert_same(drawn(found), drawn(found_model(folder)))


def test_a_text_encoder_of_llama_cpp_is_read_by_its_names(folder: Path, tmp_path: Path) -> None:
    inner = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}

    def renamed(name: str) -> str:
        if name in outer:
            return outer[name]
        _, _, index, layer = name.removesuffix(".weight").split(".", 3)
        return f"blk.{index}.{inner[layer]}.weight"

    written = {renamed(name): (tensor, "F32") for name, tensor in tensors_of(folder, "text_encoder").items()}
    save(tmp_path / "parts" / "klein.safetensors", tensors_of(folder, "transformer"))
    save(tmp_path / "parts" / "vae.safetensors", tensors_of(folder, "vae"))
    write_gguf(tmp_path / "parts" / "qwen.gguf", written, "qwen3")
    assert_same(drawn(found_model(tmp_path / "parts", folder)), drawn(found_model(folder)))


def test_the_base_model_is_told_by_the_name_of_its_file(folder: Path, tmp_path: Path) -> None:
    """The tensors of both have the same shapes."""
    tensors = transformer_names(tensors_of(folder, "transformer"))
    for name, steps in (
        ("flux-2-klein-4b", 4),
        ("flux-2-klein-base-4b", 50),
        ("database-klein", 4),
        ("kleinUndistilled", 50),
    ):
        profile = found_model(save(tmp_path / f"{name}.safetensors", tensors), folder).profile
        assert profile.steps == steps and profile.inputs.negative_prompt == (steps == 50), name


def test_a_transformer_with_guidance_is_dev_and_refused(folder: Path, tmp_path: Path) -> None:
    tensors = transformer_names(tensors_of(folder, "transformer"))
    tensors["guidance_in.in_layer.weight"] = torch.zeros(32, 32)
    with pytest.raises(WeightsError, match=r"^dev.safetensors is FLUX.2 dev, whose text encoder is Mistral"):
        found_model(save(tmp_path / "dev.safetensors", tensors), folder)
