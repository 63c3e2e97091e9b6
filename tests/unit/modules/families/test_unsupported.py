"""What cannot be used is called by its name, in one line, wherever it is put."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.headers import write_header
from support.refusals import refusal

from backend.core.settings import Settings
from modules.app.model_files import find_source
from modules.families.registry import identify

Shapes = dict[str, tuple[int, ...]]
UNET = "model.diffusion_model."


def shapes(*names: str) -> Shapes:
    return dict.fromkeys(names, (4, 4))


FLUX = {"img_in.weight": (8, 64), "double_blocks.0.img_mod.lin.weight": (6, 6), "final_layer.linear.weight": (64, 8)}
FILES: dict[str, tuple[Shapes, str]] = {
    "kohya": (shapes("lora_unet_single_blocks_3_linear1.lora_down.weight"), "a LoRA for Flux"),
    "ai-toolkit": (shapes("transformer.transformer_blocks.0.attn.to_q.lora_A.weight"), "a LoRA for Flux"),
    "ComfyUI's": (shapes("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"), "a LoRA for Flux"),
    "LoKr": (shapes("lycoris_single_blocks_0_linear1.lokr_w1"), "a LoRA for Flux"),
    "LoHa": (shapes("lora_unet_double_blocks_0_img_mlp_0.hada_w1_a"), "a LoRA for Flux"),
    "DoRA": (shapes("transformer.single_transformer_blocks.0.proj_out.dora_scale"), "a LoRA for Flux"),
    "FLUX.2's": (shapes("diffusion_model.double_stream_modulation_img.lin.lora_A.weight"), "a LoRA for FLUX.2"),
    "Qwen's": (shapes("transformer_blocks.0.img_mlp.net.2.lora_A.weight"), "a LoRA for Qwen-Image"),
    "Wan's": (shapes("diffusion_model.blocks.0.self_attn.q.lora_A.weight"), "a LoRA for a video model"),
    "SDXL's": ({"lora_unet_down_blocks_1_attentions_0_attn2_to_k.lora_down.weight": (8, 2048)}, "a LoRA for SDXL"),
    "SD 1.5's": (shapes("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"), "a LoRA for SD 1.5"),
    "Redux": (shapes("redux_up.weight", "redux_down.weight"), "FLUX.1 Redux"),
    "FLUX.2": (shapes("double_stream_modulation_img.lin.weight", "guidance_in.in_layer.weight"), "FLUX.2 dev"),
    "Chroma": ({**FLUX, **shapes("distilled_guidance_layer.layers.0.in_layer.weight")}, "Chroma"),
    "Hunyuan": ({**FLUX, **shapes("txt_in.individual_token_refiner.blocks.0.mlp.0.weight")}, "a video model"),
    "SD3": (shapes(f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"), "Stable Diffusion 3"),
    "SD3.5": (shapes(f"{UNET}joint_blocks.0.x_block.attn.ln_q.weight"), "Stable Diffusion 3.5"),
    "SD3, diffusers": (shapes("pos_embed.proj.weight", "transformer_blocks.0.norm1.linear.weight"), "Stable Diffusion 3"),
    "Qwen-Image": (shapes("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"), "Qwen-Image"),
    "Z-Image Omni": (shapes("cap_embedder.0.weight", "x_pad_token", "siglip_pad_token"), "Z-Image Omni"),
    "Lumina": (shapes("cap_embedder.0.weight", "noise_refiner.0.attention.qkv.weight"), "a model of the Lumina family"),
    "Wan": (shapes("blocks.0.self_attn.q.weight", "blocks.0.cross_attn.k.weight"), "a video model of the Wan family"),
    "SVD": (shapes(f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight"), "a video"),
    "AuraFlow": (shapes("double_layers.0.attn.w1k.weight"), "AuraFlow"),
    "HiDream": (shapes("double_stream_blocks.0.block.ff_i.gate.weight"), "HiDream"),
    "Playground": (shapes(f"{UNET}input_blocks.0.0.weight", "edm_mean", "edm_std"), "an EDM model"),
    "ControlNet": (shapes("controlnet_cond_embedding.conv_in.weight", "time_embedding.linear_1.weight"), "a ControlNet"),
    "ControlNet for Flux": (shapes("controlnet_x_embedder.weight", "transformer_blocks.0.ff.net.2.bias"), "a ControlNet for"),
    "IP-Adapter": (shapes("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter"),
    "CLIP": (shapes("text_model.final_layer_norm.weight"), "a text encoder"),
    "T5": (shapes("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"), "a text encoder"),
    "CLIP vision": (shapes("vision_model.embeddings.class_embedding"), "a vision encoder"),
    "Qwen": (shapes("model.layers.0.self_attn.q_proj.weight"), "a language model"),
    "VAE": (shapes("decoder.conv_in.weight", "encoder.conv_in.weight"), "a VAE"),
    "VAE of a checkpoint": (shapes("first_stage_model.decoder.conv_in.weight"), "a VAE"),
    "TAESD": (shapes("decoder.layers.0.weight", "encoder.layers.0.weight"), "a VAE"),
    "embedding": (shapes("emb_params"), "a textual inversion embedding"),
    "embedding for SDXL": (shapes("clip_g", "clip_l"), "a textual inversion embedding"),
    "upscaler": (shapes("conv_first.weight", "body.0.rdb1.conv1.weight"), "an upscaler"),
    "old upscaler": (shapes("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "an upscaler"),
    "YOLO": (shapes("model.0.conv.weight", "model.2.cv1.conv.weight"), "a detector"),
}  # fmt: skip


def told(**settings: str) -> str:
    """The one line that a service ends with."""
    return refusal(lambda: identify(find_source(replace(Settings(), **settings))).spec("fp32"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("key", ["model", "base_model"])
def test_a_file_is_called_by_its_name(tmp_path: Path, name: str, key: str) -> None:
    tensors, what = FILES[name]
    if key == "base_model" and what in ("a VAE", "a text encoder") and name != "TAESD":
        pytest.skip("parts of a model may be what a file lacks")
    save_file({one: torch.zeros(shape) for one, shape in tensors.items()}, tmp_path / "mine.safetensors")
    flux = write_header(tmp_path / "flux.safetensors", {"double_blocks.0.img_mod.lin.weight": (6, 6)})
    save_file({"double_blocks.0.img_mod.lin.weight": torch.zeros(6, 6)}, flux)
    mine = str(tmp_path / "mine.safetensors")
    line = told(model=mine) if key == "model" else told(model=str(flux), base_model=mine)
    assert line.startswith(f"mine.safetensors is {what}") and f"; '{key}' takes a model of one of the families" in line


CONTENTS: dict[str, tuple[bytes, str]] = {
    "web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
    "old web page": (b"\n<html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 23\n", "a Git LFS pointer"),
    "answer": (b"Invalid username or password.", "a text in place of the file ('Invalid username"),
    "error": (b'{"error": "Repository not found"}', "a JSON file"),
    "nothing": (b"", "empty"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a picture"),
    "archive": (b"7z\xbc\xaf\x27\x1c" + bytes(64), "an archive"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x052.9.0" + bytes(64), "an ONNX model"),
    "pickle": (b"\x80\x02}q\x00." + bytes(64), "a pickle of torch"),
    "archive of torch": (b"PK\x03\x04" + bytes(64), "a pickle of torch"),
}


@pytest.mark.parametrize("key", ["model", "base_model"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".gguf", ".onnx"])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_holds_no_weights_is_called_by_its_name(tmp_path: Path, name: str, suffix: str, key: str) -> None:
    content, what = CONTENTS[name]
    (tmp_path / f"mine{suffix}").write_bytes(content)
    save_file({"double_blocks.0.img_mod.lin.weight": torch.zeros(6, 6)}, tmp_path / "flux.safetensors")
    other = {"model": str(tmp_path / "flux.safetensors")} if key == "base_model" else {}
    assert told(**{**other, key: str(tmp_path / f"mine{suffix}")}).startswith(f"mine{suffix}: is {what}")


@pytest.mark.parametrize(
    ("pipeline", "what"),
    [
        ("FluxPriorReduxPipeline", "FLUX.1 Redux"),
        ("Flux2Pipeline", "FLUX.2 dev"),
        ("ChromaPipeline", "Chroma"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3 or 3.5"),
        ("QwenImageEditPipeline", "Qwen-Image"),
        ("ZImageOmniPipeline", "a Z-Image that reads"),
        ("WanImageToVideoPipeline", "a video model"),
        ("StableDiffusionUpscalePipeline", "an upscaler in diffusers' layout"),
        ("KandinskyV22Pipeline", "a KandinskyV22Pipeline"),
    ],
)
def test_a_folder_is_called_by_what_its_index_says(tmp_path: Path, pipeline: str, what: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert told(model=str(tmp_path)).startswith(f"{tmp_path.name} is {what}")


def test_a_folder_of_separate_files_says_what_is_in_it(tmp_path: Path) -> None:
    save_file({"lora_unet_single_blocks_3_linear1.lora_down.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert "holds no model that generates (a.safetensors is a LoRA for Flux); put" in told(model=str(tmp_path))
    for name in ("b", "c"):
        save_file({one: torch.zeros(shape) for one, shape in FLUX.items()}, tmp_path / f"{name}.safetensors")
    assert "holds several models that generate (b.safetensors, c.safetensors); name one" in told(model=str(tmp_path))


def test_a_folder_with_nothing_in_it_is_no_model(tmp_path: Path) -> None:
    assert "no model that is known here" in told(model=str(tmp_path))
