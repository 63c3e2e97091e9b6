"""What FLUX.2 klein weighs and costs is read from headers and configurations; for the published one it is what is known
of it without files."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from support.model_specs import KNOWN
from support.small_flux2 import write_klein as write_small
from support.sparse_checkpoints import write_klein
from support.specs import assert_alike

from backend.devices.emulated import EmulatedDevice
from backend.offload.placements import block_modules
from backend.planning.model_specs import PicturesRead
from modules.families.flux2_klein import FLUX2_KLEIN
from modules.families.registry import identify
from modules.families.source import Source


def test_a_folder_of_the_published_model_is_counted_as_it(tmp_path: Path) -> None:
    source = Source(write_klein(tmp_path / "klein"))
    assert identify(source).family is FLUX2_KLEIN
    found = FLUX2_KLEIN.spec(source, "bf16")
    assert_alike(found, KNOWN["flux2-klein"], tolerance=0.02, image_tokens=4096)
    assert (found.prompt_bytes, found.pictures) == (512 * 7680 * 2, PicturesRead(0, 5, 4096, repainted=True))
    assert KNOWN["flux2-klein"].pictures == found.pictures


def test_the_counted_blocks_are_those_that_are_streamed(tmp_path: Path) -> None:
    source = Source(write_small(tmp_path / "klein"))
    for name, counted in FLUX2_KLEIN.spec(source, "fp32").components.items():
        module = FLUX2_KLEIN.load(source, name, torch.float32)
        blocks = tuple(sum(p.numel() for p in block.parameters()) for block in block_modules(module))
        assert blocks == counted.blocks and sum(p.numel() for p in module.parameters()) == counted.parameters, name


def test_the_real_transformer_takes_as_much_memory_as_the_plan_counts(tmp_path: Path) -> None:
    """As wide as the published one, on tensors without data; what the sampler holds comes on top."""
    tokens, words = 4096, 512
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            num_layers=1, num_single_layers=1, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ).to(torch.bfloat16)
        given = {
            "hidden_states": torch.zeros(1, tokens, 128, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.zeros(1, words, 7680, dtype=torch.bfloat16),
            "timestep": torch.zeros(1),
            "img_ids": torch.zeros(1, tokens, 4),
            "txt_ids": torch.zeros(1, words, 4),
        }
    device = EmulatedDevice(10**12, counts_meta=True)
    with torch.inference_mode(), device:
        transformer(**given)
    planned = FLUX2_KLEIN.spec(Source(write_klein(tmp_path / "klein")), "bf16").costs["denoise"].memory(tokens + words)
    assert 0.97 * planned < device.peak_bytes < planned


def test_the_base_model_takes_two_forwards_a_step(tmp_path: Path) -> None:
    specs = [
        FLUX2_KLEIN.spec(Source(write_small(tmp_path / str(distilled), distilled)), "fp32")
        for distilled in (True, False)
    ]
    once, twice = (spec.costs["denoise"] for spec in specs)
    assert twice.work(700) == 2 * once.work(700) and twice.memory(700) == once.memory(700)
    assert [spec.steps for spec in specs] == [4, 50]
