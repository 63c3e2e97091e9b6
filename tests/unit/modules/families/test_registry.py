"""Which family a model is of, and what a thing is that none of them takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.headers import write_config, write_header

from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from modules.families.registry import FAMILIES, identify, known_models
from modules.families.source import INDEX, Source

EMBEDDED = ROOT / "weights" / "embedded" / "flux"
UNET = "model.diffusion_model."
FLUX = {
    "img_in.weight": (3072, 64),
    "double_blocks.0.img_mod.lin.weight": (6, 6),
    "final_layer.linear.weight": (64, 3072),
}
FLUX2_DEV = {"double_stream_modulation_img.lin.weight": (36, 6), "guidance_in.in_layer.weight": (6, 4)}
SD_UNET = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), f"{UNET}out.2.weight": (4, 320, 3, 3)}
SDXL = {**SD_UNET, "conditioner.embedders.1.model.ln_final.weight": (1280,)}
SD15 = {**SD_UNET, "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
NAMES = ", ".join(family.name for family in FAMILIES)


def nine_channels(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {**shapes, f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({**FLUX, "img_in.weight": (3072, 100)}, "a Flux transformer that takes 100 channels in place of 64"),
        ({**FLUX, "distilled_guidance_layer.in_proj.weight": (5, 5)}, "Chroma"),
        (FLUX2_DEV, "FLUX.2 dev"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 192)}, "a LoRA for Flux"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 192)}, "a LoRA for Flux"),
        ({"double_blocks.0.processor.qkv_lora1.down.weight": (4, 192)}, "a LoRA for Flux"),
        ({"controlnet_x_embedder.weight": (8, 8), "transformer_blocks.0.ff.net.2.bias": (8,)}, "a ControlNet for Flux"),
        (nine_channels(SDXL), "an SDXL inpainting model"),
        (nine_channels(SD15), "an SD 1.5 inpainting model"),
        ({**SD_UNET, "conditioner.embedders.0.model.ln_final.weight": (1280,)}, "an SDXL refiner"),
        ({**SD_UNET, "cond_stage_model.model.ln_final.weight": (1024,)}, "SD 2.1"),
        ({KOHYA: (4, 2048)}, "a LoRA for SDXL"),
        ({"lora_unet_down_blocks_0_attentions_0_attn2_to_k.lora_down.weight": (4, 768)}, "a LoRA for SD 1.5"),
        ({"lora_unet_down_blocks_0_attentions_0_attn2_to_k.lora_down.weight": (4, 1024)}, "a LoRA for SD 2.1"),
        ({"control_model.input_hint_block.0.bias": (1,)}, "a ControlNet for Stable Diffusion"),
        ({"joint_blocks.0.x_block.attn.proj.bias": (1,)}, "Stable Diffusion 3"),
        ({"text_model.encoder.layers.0.mlp.fc1.bias": (1,)}, "a text encoder"),
        ({"decoder.conv_in.bias": (1,), "encoder.conv_in.bias": (1,)}, "a VAE"),
        ({"conv_first.weight": (64, 3, 3, 3)}, "an upscaler"),
        ({"a.weight": (1,)}, "no model that is known here"),
    ],
)
def test_a_file_that_no_family_takes_is_called_by_its_name(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], what: str
) -> None:
    file = write_header(tmp_path / "mine.safetensors", shapes)
    with pytest.raises(WeightsError) as caught:
        identify(Source(file, EMBEDDED))
    assert str(caught.value).startswith(f"mine.safetensors is {what}") and NAMES in str(caught.value)


def test_an_unknown_file_is_called_what_its_metadata_says(tmp_path: Path) -> None:
    file = write_header(tmp_path / "mine.safetensors", {"a": (1,)}, {"modelspec.architecture": "hunyuan-dit"})
    with pytest.raises(WeightsError, match=r"^mine.safetensors is hunyuan-dit;"):
        identify(Source(file))


@pytest.mark.parametrize(
    ("shapes", "advice"),
    [
        (FLUX, "the text encoder CLIP-L, the text encoder T5-XXL and an autoencoder (VAE)"),
        (SDXL, "the text encoder CLIP-L, the text encoder CLIP-G and an autoencoder (VAE)"),
        (SD_UNET, "the text encoder CLIP-L and an autoencoder (VAE)"),
    ],
)
def test_a_single_file_asks_for_the_folder_beside_it(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], advice: str
) -> None:
    file = write_header(tmp_path / "mine.safetensors", shapes)
    with pytest.raises(WeightsError, match=f"^mine.safetensors comes without {re.escape(advice)};.*'base_model'$"):
        identify(Source(file))


@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_flux_file_beside_a_folder_is_a_model_of_its_own(tmp_path: Path, prefix: str) -> None:
    file = write_header(tmp_path / "mine.safetensors", {prefix + name: shape for name, shape in FLUX.items()})
    found = identify(Source(file, EMBEDDED))
    assert found.family.name == "flux1" and found.profile.name == "mine"
    assert found.profile.steps == 4 and found.profile.inputs.guidance is None  # it has no embedding of a guidance


def folder(path: Path, pipeline: str, **configs: dict[str, object]) -> Source:
    path.mkdir()
    (path / INDEX).write_text(json.dumps({"_class_name": pipeline}))
    for name, config in configs.items():
        write_config(path / name, **config)
    return Source(path)


VAE = {"block_out_channels": [1, 1, 1, 1], "latent_channels": 16}


@pytest.mark.parametrize(
    ("pipeline", "configs", "what"),
    [
        (
            "FluxPipeline",
            {"transformer": {"_class_name": "FluxTransformer2DModel", "in_channels": 100}, "vae": VAE},
            "a Flux transformer that takes 100 channels in place of 64",
        ),
        ("Flux2Pipeline", {"transformer": {"_class_name": "Flux2Transformer2DModel"}}, "FLUX.2 dev"),
        ("StableDiffusionPipeline", {"unet": {"cross_attention_dim": 1024}, "text_encoder": {}}, "SD 2.1"),
        (
            "StableDiffusionXLImg2ImgPipeline",
            {"unet": {"cross_attention_dim": 1280}, "text_encoder_2": {}},
            "an SDXL refiner",
        ),
        ("StableDiffusionPipeline", {"unet": {}}, "a UNet without text encoders"),
        (
            "StableDiffusionXLInpaintPipeline",
            {"unet": {"in_channels": 9}, "text_encoder": {}, "text_encoder_2": {}},
            "an SDXL inpainting model",
        ),
        (
            "StableDiffusion3Pipeline",
            {"transformer": {"_class_name": "SD3Transformer2DModel"}},
            "Stable Diffusion 3 or 3.5",
        ),
    ],
)
def test_a_folder_that_no_family_takes_is_called_by_its_name(
    tmp_path: Path, pipeline: str, configs: dict[str, dict[str, object]], what: str
) -> None:
    with pytest.raises(WeightsError, match=f"^mine is {what}"):
        identify(folder(tmp_path / "mine", pipeline, **configs))


def test_the_embedded_model_is_found_wherever_its_folder_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(EMBEDDED)
    here, there = (identify(Source(path)) for path in (EMBEDDED, tmp_path / "elsewhere"))
    assert here.family is there.family and here.profile == there.profile
    assert here.family.spec(here.source, "fp32") == there.family.spec(there.source, "fp32")


def test_the_families_and_the_models_whose_sizes_are_known_without_files() -> None:
    assert [family.name for family in FAMILIES] == ["flux1", "flux2-klein", "z-image", "sdxl", "sd15"]
    flux1 = ["flux-dev", "flux-schnell", "flux-fill-dev", "flux-kontext-dev"]
    assert list(known_models()) == [*flux1, "flux2-klein", "z-image-turbo", "sdxl", "sd15"]
    assert all({"detectors", "upscaler"} <= set(spec.components) for spec in known_models().values())
