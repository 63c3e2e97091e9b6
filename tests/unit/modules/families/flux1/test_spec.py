"""What FLUX.1 weighs and costs is read from headers and configurations; for FLUX.1-dev's it is what was published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from support.headers import write_component, write_header
from support.model_specs import FLUX_DEV
from support.specs import assert_alike
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from backend.memory_management import plan_memory
from backend.planning.activations import Workload
from backend.planning.gpu_specs import emulated_memory
from backend.planning.model_specs import ModelSpec
from modules.families.descriptor import Match
from modules.families.flux1 import FLUX1
from modules.families.flux1.loading import load_tokenizers
from modules.families.registry import identify
from modules.families.source import Source

EMBEDDED = ROOT / "weights" / "embedded" / "flux"


def write_flux_dev(folder: Path) -> None:
    """FLUX.1-dev without its data."""
    t5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    with torch.device("meta"):
        write_component(folder / "text_encoder", CLIPTextModel(CLIPTextConfig(**clip)), **clip)
        encoder = T5EncoderModel(T5Config(**t5, feed_forward_proj="gated-gelu"))
        write_component(folder / "text_encoder_2", encoder, **t5)
        transformer = {"_class_name": "FluxTransformer2DModel", "in_channels": 64, "guidance_embeds": True}
        write_component(folder / "transformer", FluxTransformer2DModel(guidance_embeds=True), **transformer)
        write_component(folder / "vae", AutoencoderKL(**vae), **vae)


def test_a_folder_of_flux_dev_is_counted_as_the_published_model(tmp_path: Path) -> None:
    write_flux_dev(tmp_path / "mine")
    source = Source(tmp_path / "mine")
    assert FLUX1.detect(source) == Match()
    assert_alike(FLUX1.spec(source, "bf16"), FLUX_DEV, tolerance=0.03, image_tokens=4096)


def spec(source: Source) -> ModelSpec:
    return FLUX1.spec(source, "fp32")


def test_the_embedded_model_costs_what_was_measured() -> None:
    """By ``python -m bench.memory.activations``."""
    costs = spec(Source(EMBEDDED)).costs
    assert costs["denoise"].memory(1) == pytest.approx(16.25 * 192 * 4)
    assert costs["encode"].memory(1) == 16 * 192 * 4
    assert costs["decode"].memory(1) == 3 * 32 * 4


def test_a_copy_of_the_embedded_model_is_planned_for_a_small_device(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "mine")
    models = spec(Source(tmp_path / "mine"))
    plan = plan_memory(emulated_memory(200_000_000, 10**10), models, Workload(256, 256))
    assert {placement.kind for placement in plan.placements.values()} == {"resident"}
    assert plan.predicted_peak_bytes < 200_000_000


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_is_counted_as_the_transformer_that_it_holds(tmp_path: Path, prefix: str) -> None:
    shapes = Source(EMBEDDED).folder_header("transformer").shapes
    file = write_header(tmp_path / "mine.safetensors", {prefix + name: shape for name, shape in shapes.items()})
    assert spec(Source(file, EMBEDDED)).components == spec(Source(EMBEDDED)).components


def test_a_model_without_an_embedding_of_guidance_takes_four_steps_and_no_guidance(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "mine")
    config = tmp_path / "mine" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": False}))
    profile = FLUX1.profile(Source(tmp_path / "mine"))
    assert profile.steps == 4 and profile.inputs.guidance is None


def test_separate_files_of_the_published_sizes_need_no_configuration(tmp_path: Path) -> None:
    """Only the tokenizers are asked for, which no such file brings."""
    write_flux_dev(tmp_path / "dev")
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "dev" / name / "model.safetensors", tmp_path / "parts" / f"{name}.safetensors")
    found = identify(Source(tmp_path / "parts", shelf=tmp_path / "weights"))
    profile, whole = found.profile, FLUX1.spec(Source(tmp_path / "dev"), "bf16")
    assert (profile.native, profile.tokens, profile.steps, profile.latent_factor) == (1024, 512, 28, 8)
    assert found.spec("bf16").components == whole.components and found.spec("bf16").costs == whole.costs
    with pytest.raises(
        WeightsError, match="^transformer.safetensors comes without the tokenizer of .*schnell/tokenizers"
    ):
        load_tokenizers(found.source)
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / "weights" / "FLUX.1-schnell").mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / "FLUX.1-schnell" / name).symlink_to(EMBEDDED / name)
    assert [tokenizer.model_max_length for tokenizer in load_tokenizers(found.source)] == [40, 40]


def test_a_transformer_that_reads_other_text_than_its_parts_give_is_refused(tmp_path: Path) -> None:
    shapes = Source(EMBEDDED).folder_header("transformer").shapes
    wide = {**shapes, "context_embedder.weight": (192, 4096)}
    file = write_header(tmp_path / "mine.safetensors", wide)
    with pytest.raises(
        WeightsError,
        match="^mine.safetensors reads text of width 4096, and the text encoder T5-XXL in 'flux' gives 192",
    ):
        identify(Source(file, EMBEDDED))
