"""What a step of SDXL and SD 1.5 costs, and small models of both families with random weights.

python -m bench.speed.stable_diffusion                              figures of the plan, counted without data
python -m bench.speed.stable_diffusion --write DIR --family sdxl    a small model in diffusers' layout
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from backend.core.settings import ROOT
from backend.devices.emulated import EmulatedDevice
from backend.devices.torchvision_ops import ensure_torchvision_operators
from modules.families.registry import known_models

ensure_torchvision_operators()  # before anything imports diffusers

from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

from backend.offload.placements import block_modules  # noqa: E402

Sizes = Mapping[str, Mapping[str, Any]]
"""By component the arguments of its configuration that decide its size."""

XL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SMALL_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
VAE, SMALL_VAE = (
    {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1},
)

FULL: Mapping[str, Sizes] = MappingProxyType(
    {
        "sdxl": {
            "unet": {
                **XL_BLOCKS,
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "cross_attention_dim": 2048,
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "vae": VAE,
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
        },
        "sd15": {
            "unet": {
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280, 1280),
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
            },
            "vae": VAE,
            "text_encoder": CLIP_L,
        },
    }
)
SMALL: Mapping[str, Sizes] = MappingProxyType(
    {
        "sdxl": {
            "unet": {
                **XL_BLOCKS,
                "sample_size": 32,
                "block_out_channels": (32, 64, 64),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "cross_attention_dim": 64,
                "transformer_layers_per_block": (1, 1, 2),
                "attention_head_dim": (2, 4, 4),
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 32,
            },
            "vae": SMALL_VAE,
            "text_encoder": SMALL_CLIP,
            "text_encoder_2": {**SMALL_CLIP, "hidden_act": "gelu"},
        },
        "sd15": {
            "unet": {
                "sample_size": 32,
                "block_out_channels": (32, 64, 64, 64),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "cross_attention_dim": 32,
                "attention_head_dim": 4,
            },
            "vae": SMALL_VAE,
            "text_encoder": SMALL_CLIP,
        },
    }
)
"""Members that are drawn with in seconds on a CPU. Their native size is 256."""
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""Of both families' schedulers."""


def build(component: str, sizes: Mapping[str, Any], class_set: int = 49408) -> Any:
    """A component as large as ``sizes`` says."""
    if component == "unet":
        return UNet2DConditionModel(**sizes)
    if component == "vae":
        blocks = len(sizes["block_out_channels"])
        ways = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
        return AutoencoderKL(latent_channels=4, scaling_factor=0.18215, **ways, **sizes)
    kind: Any = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
    return kind(CLIPTextConfig(vocab_size=class_set, max_position_embeddings=77, **sizes))


def write(folder: Path, family: str, seed: int = 0) -> None:
    """A small member of the family with random weights, as diffusers saves one."""
    from transformers import CLIPTokenizer

    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(
        ROOT / "weights" / "embedded" / "flux" / "tokenizer",
        local_files_only=True,
        trust_remote_code=False,
    )
    library = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        **library,
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if family == "sdxl":
        second = {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
        index |= {"_class_name": "StableDiffusionXLPipeline", **second, "force_zeros_for_empty_prompt": True}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    for component, sizes in SMALL[family].items():
        more = (
            {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            if component.startswith("text")
            else {}
        )
        build(component, {**sizes, **more}, len(tokenizer)).eval().save_pretrained(folder / component)
    scheduler = (
        EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
        if family == "sdxl"
        else PNDMScheduler(**NOISE, skip_prk_steps=True)
    )
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer.model_max_length = 77
    for name in [name for name in index if name.startswith("tokenizer")]:
        tokenizer.save_pretrained(folder / name)
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


@dataclass(frozen=True)
class Count:
    """A forward with what is wanted and what is to be avoided, in bf16: ``x`` are text and image tokens, ``peak``
    bytes beside the weights."""

    x: int
    operations: float
    peak: int


def without_data(family: str) -> Any:
    """The family's UNet on the meta device."""
    with torch.device("meta"):
        return build("unet", FULL[family]["unet"]).to(torch.bfloat16)


def count(family: str, unet: Any, side: int) -> Count:
    """One forward for a picture of ``side`` x ``side`` pixels, run on tensors that have shapes and no data."""
    latents = side // 8
    with torch.device("meta"):
        words = torch.zeros(2, 77, FULL[family]["unet"]["cross_attention_dim"], dtype=torch.bfloat16)
        noise = torch.zeros(2, 4, latents, latents, dtype=torch.bfloat16)
        whole = {
            "text_embeds": torch.zeros(2, 1280, dtype=torch.bfloat16),
            "time_ids": torch.zeros(2, 6, dtype=torch.bfloat16),
        }
        moment = torch.zeros(())
    given = {"encoder_hidden_states": words, "added_cond_kwargs": whole if family == "sdxl" else None}
    device, counter = EmulatedDevice(2**60, counts_meta=True), FlopCounterMode(display=False)
    with torch.inference_mode():
        with device:
            unet(noise, moment, **given)
        with counter:
            unet(noise, moment, **given)
    return Count(77 + latents * latents, counter.get_total_flops(), device.peak_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="DIR")
    parser.add_argument("--family", choices=tuple(SMALL), default="sdxl")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.family)
        return
    for family in FULL:
        unet, known = without_data(family), known_models()[family]
        parameters, blocks = (
            sum(p.numel() for p in modules)
            for modules in (unet.parameters(), (p for b in block_modules(unet) for p in b.parameters()))
        )
        print(f"{family}: {parameters:,} parameters, {blocks:,} of them in blocks")
        print(f"{'side':>6} {'x':>7} {'TFLOP':>7} {'as planned':>11} {'bytes':>13} {'as planned':>13}")
        for side in (512, 768, 1024, 1536):
            one, cost = count(family, unet, side), known.costs["denoise"]
            print(
                f"{side:>6} {one.x:>7} {one.operations / 1e12:>7.2f} {cost.work(one.x) / 1e12:>11.2f} {one.peak:>13,} "
                f"{int(cost.memory(one.x)):>13,}"
            )


if __name__ == "__main__":
    main()
