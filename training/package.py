"""Puts the trained parts together as a diffusers folder in half precision: ``python -m training.package --parts DIR
--out weights/embedded/flux``."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from training.data.vocabulary import MAX_TOKENS
from training.models.transformer import SHIFT

MODEL_INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

KNOWS = "people, cats, dogs, houses, trees, cars, flowers, bowls of fruit, mountains, beaches, and cities at night"
"""What a notice tells of a prompt with other words."""


def package(parts: Path, encoders: Path, out: Path) -> None:
    """Writes beside the destination first and renames at the end, so that no half-written model is ever there."""
    building = out.with_name(f".{out.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(encoders / name, building / name)
    CLIPTextModel.from_pretrained(encoders / "text_encoder", trust_remote_code=False).half().save_pretrained(
        building / "text_encoder"
    )
    T5EncoderModel.from_pretrained(encoders / "text_encoder_2", trust_remote_code=False).half().save_pretrained(
        building / "text_encoder_2"
    )
    FluxTransformer2DModel.from_pretrained(
        parts / "transformer", torch_dtype=torch.float16, trust_remote_code=False
    ).save_pretrained(building / "transformer")
    AutoencoderKL.from_pretrained(parts / "vae", torch_dtype=torch.float16, trust_remote_code=False).save_pretrained(
        building / "vae"
    )
    for config in building.glob("*/config.json"):  # where the parts lay says nothing about the model
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(building / "scheduler")
    (building / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    (building / "family.json").write_text(
        json.dumps({"name": "flux-embedded", "native": 256, "tokens": MAX_TOKENS, "knows": KNOWS}, indent=2) + "\n"
    )
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", type=Path, required=True, help="folder with vae, transformer, text encoders and tokenizers"
    )
    parser.add_argument("--encoders", type=Path, help="folder of the text encoders and tokenizers, if it is another")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    package(arguments.parts, arguments.encoders or arguments.parts, arguments.out)


if __name__ == "__main__":
    main()
