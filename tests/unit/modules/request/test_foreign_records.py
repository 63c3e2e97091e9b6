"""What InvokeAI, Fooocus, SwarmUI, NovelAI and ComfyUI write into pictures is read as a WebUI's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from modules.cli.given_inputs import PictureSource
from modules.request.foreign_records import as_infotext
from modules.request.infotext import parse

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 77, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
}  # fmt: skip
FLUX_GRAPH = {
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["11", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "unused", "clip": ["11", 0]}},
    "12": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}},
    "13": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["25", 0], "guider": ["22", 0]}},
    "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "17": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 20, "denoise": 1}},
    "22": {"class_type": "BasicGuider", "inputs": {"model": ["30", 0], "conditioning": ["26", 0]}},
    "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 219670278747233}},
    "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
    "27": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 1024}},
}
RECORDS: dict[str, tuple[str, dict[str, Any], tuple[str, str, dict[str, str]]]] = {
    "InvokeAI": (
        "invokeai_metadata",
        {
            "generation_mode": "sdxl_txt2img", "positive_prompt": "a fox", "negative_prompt": "blurry", "width": 1024,
            "height": 768, "seed": 77, "cfg_scale": 6.5, "steps": 20, "scheduler": "euler", "model": {"name": "SDXL base"},
            "loras": [{"weight": 1}], "strength": None,
        },
        ("a fox", "blurry", {
            "Steps": "20", "Seed": "77", "CFG scale": "6.5", "Sampler": "euler", "Model": "SDXL base",
            "Size": "1024x768", "generation mode": "given", "loras": "given",
        }),
    ),
    "Fooocus": (
        "parameters",
        {
            "prompt": "a fox, \"sly\"", "negative_prompt": "", "resolution": "(1152, 896)", "guidance_scale": 4,
            "steps": 30, "seed": "8471", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "base_model": "jugger",
        },
        ("a fox, \"sly\"", "", {
            "Steps": "30", "Seed": "8471", "CFG scale": "4", "Sampler": "dpmpp_2m_sde_gpu", "Schedule type": "karras",
            "Model": "jugger", "Size": "1152x896",
        }),
    ),
    "SwarmUI": (
        "parameters",
        {"sui_image_params": {
            "prompt": "a fox", "negativeprompt": "blurry", "model": "flux", "seed": 5, "steps": 8, "cfgscale": 1,
            "fluxguidancescale": 3.5, "width": 512, "height": 512,
        }},
        ("a fox", "blurry", {
            "Steps": "8", "Seed": "5", "CFG scale": "1", "Distilled CFG Scale": "3.5", "Model": "flux", "Size": "512x512",
        }),
    ),
    "NovelAI": (
        "Comment",
        {"prompt": "a fox", "uc": "lowres", "steps": 28, "scale": 5, "seed": 1, "sampler": "k_euler", "width": 832, "height": 1216},
        ("a fox", "lowres", {
            "Steps": "28", "Seed": "1", "CFG scale": "5", "Sampler": "k_euler", "Size": "832x1216",
        }),
    ),
    "ComfyUI": (
        "prompt",
        GRAPH,
        ("a fox", "blurry", {
            "Steps": "20", "Seed": "77", "CFG scale": "8", "Sampler": "dpmpp_2m", "Schedule type": "karras",
            "Model": "sd_xl_base_1.0.safetensors", "Size": "1024x768",
        }),
    ),
    "ComfyUI with Flux": (
        "prompt",
        FLUX_GRAPH,
        ("a fox", "", {
            "Steps": "20", "Seed": "219670278747233", "Distilled CFG Scale": "3.5", "Sampler": "euler",
            "Schedule type": "simple", "Model": "flux1-dev.safetensors", "Size": "1024x1024",
        }),
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", RECORDS)
def test_a_picture_of_another_program_says_how_it_was_made(tmp_path: Path, program: str) -> None:
    key, record, wanted = RECORDS[program]
    chunks = PngInfo()
    chunks.add_text(key, json.dumps(record))
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=chunks)
    assert parse(PictureSource(tmp_path / "made.png", InputSchema()).text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "{}", '{"steps": ', "[" * 9000, '{"a":' * 9000, '{"prompt": "x"}', '{"1": {"class_type": "X"}}',
        '{"sui_image_params": 5}', '{"1": {"class_type": "X", "inputs": 5}}',
    ],
)  # fmt: skip
def test_what_is_no_such_record_is_none(tmp_path: Path, text: str) -> None:
    assert as_infotext(text) == ""
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(InputError, match="does not say how it was made"):
        PictureSource(tmp_path / "text.txt", InputSchema())


def test_links_in_a_circle_and_odd_values_end() -> None:
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"steps": 3, "positive": ["2", 0], "negative": [], "seed": [["x"]]}},
        "2": {"class_type": "A", "inputs": {"conditioning": ["3", 0]}},
        "3": {"class_type": "B", "inputs": {"conditioning": ["2", 0]}},
    }
    assert parse(as_infotext(json.dumps(graph))) == ("", "", {"Steps": "3"})


@pytest.mark.parametrize(
    "record",
    [
        {"loras": [{"model": {"name": "ink"}, "weight": 0.75}, {"lora": {"model_name": "old/film"}, "weight": -1}]},
        {"loras": [["ink.safetensors", 0.75, "0123456789"], ["old\\film.safetensors", -1, "0"]]},
        {
            "sui_image_params": {
                "steps": 3,
                "prompt": "a fox",
                "loras": ["ink", "old/film"],
                "loraweights": ["0.75", "-1"],
            }
        },
        {
            "1": {"class_type": "KSampler", "inputs": {"steps": 3, "positive": ["2", 0]}},
            "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}},
            "3": {"class_type": "LoraLoader", "inputs": {"lora_name": "ink.safetensors", "strength_model": 0.75}},
            "4": {"class_type": "LoraLoader", "inputs": {"lora_name": "old\\film.safetensors", "strength_model": -1}},
        },
    ],
    ids=["InvokeAI", "Fooocus", "SwarmUI", "ComfyUI"],
)
def test_the_lora_of_other_programs_become_tags(record: dict[str, object]) -> None:
    if "loras" in record:
        record = {**record, "steps": 3, "prompt": "a fox"}
    prompt, _, fields = parse(as_infotext(json.dumps(record)))
    assert prompt == "a fox <lora:ink:0.75> <lora:old/film:-1>" and fields["Steps"] == "3"
    assert not any("lora" in name for name in fields)


@pytest.mark.parametrize("loras", [5, "x", [None], [[]], [{}], [{"model": 5, "weight": "x"}], {"a": 1}])
def test_odd_values_of_loras_do_no_harm(loras: object) -> None:
    assert as_infotext(json.dumps({"steps": 3, "prompt": "a fox", "loras": loras})).startswith("a fox")
