"""A diffusers folder with random weights in the shapes of FLUX.1-dev, to measure speed and memory offline."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from backend.core.settings import ROOT
from training.package import MODEL_INDEX

Sizes = Mapping[str, Mapping[str, Any]]
"""By component the arguments of its configuration that decide its size."""

FLUX_DEV: Sizes = MappingProxyType(
    {
        "transformer": {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "vocab_size": 49408,
        },
        "text_encoder_2": {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128},
    }
)
TINY: Sizes = MappingProxyType(
    {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 1,
            "num_attention_heads": 1,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 64,
        },
        "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        "text_encoder": {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "vocab_size": 1024,
        },
        "text_encoder_2": {"d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 1, "vocab_size": 2048},
    }
)
SCHEDULER: Mapping[str, Any] = MappingProxyType(
    {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
)

BLOCK, SHIFTS = 2**24, 2**20
"""Numbers that a thread writes at a time, and at how many places of the random block it may begin."""


def build(component: str, sizes: Mapping[str, Any]) -> nn.Module:
    """The component of FLUX.1-dev, as large as ``sizes`` says."""
    if component == "transformer":
        return FluxTransformer2DModel(guidance_embeds=True, **sizes)  # type: ignore[no-any-return]
    if component == "vae":
        blocks = len(sizes["block_out_channels"])
        ways = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
        scales = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 1024}
        plain = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
        return AutoencoderKL(**plain, **ways, **scales, **sizes)  # type: ignore[no-any-return]
    if component == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(projection_dim=sizes["hidden_size"], max_position_embeddings=77, **sizes))  # type: ignore[no-any-return]
    return T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, **sizes))  # type: ignore[no-any-return]


def write_checkpoint(folder: Path, sizes: Sizes) -> int:
    """Writes what is not there yet, in bfloat16; returns the bytes of all weights. Raises OSError where the file system
    has no room for them."""
    tokenizers = ROOT / "weights" / "embedded" / "flux"
    for component, arguments in sizes.items():
        target = folder / component
        if target.exists():
            continue
        with torch.device("meta"):
            module = build(component, arguments)
        part = target.with_name(f".{component}.part")
        part.mkdir(parents=True, exist_ok=True)
        _write_configuration(part, module)
        name = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        write_weights(part / f"{name}.safetensors", {name: one.shape for name, one in module.named_parameters()})
        part.rename(target)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizers / name, folder / name, dirs_exist_ok=True)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))


def _write_configuration(folder: Path, module: Any) -> None:
    if hasattr(module, "save_config"):  # of diffusers
        module.save_config(folder)
    else:
        module.config.architectures, module.config.dtype = [type(module).__name__], "bfloat16"
        module.config.save_pretrained(folder)


def write_weights(file: Path, shapes: Mapping[str, torch.Size]) -> None:
    """Random numbers as weights in bfloat16: one safetensors file, filled by several threads from one block."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    count = 0
    for name, shape in shapes.items():
        begin, count = count, count + shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [2 * begin, 2 * count]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if shutil.disk_usage(file.parent).free < 2 * count:  # a mapped file that finds no room ends the process
        raise OSError(f"no room for {2 * count / 1e9:.0f} GB in {file.parent}")
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + 2 * count)
    weights = np.memmap(file, np.int16, "r+", offset=8 + len(text), shape=count)
    block = torch.empty(BLOCK + SHIFTS, dtype=torch.bfloat16).uniform_(-0.02, 0.02).view(torch.int16).numpy()

    def fill(begin: int) -> None:
        size = min(BLOCK, count - begin)
        shift = begin // BLOCK * 8191 % SHIFTS  # no two neighbours are alike
        weights[begin : begin + size] = block[shift : shift + size]

    with ThreadPoolExecutor() as writers:
        for _ in writers.map(fill, range(0, count, BLOCK)):
            pass
