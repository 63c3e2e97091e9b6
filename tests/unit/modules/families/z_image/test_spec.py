"""What Z-Image weighs and costs is read from headers and configurations; for the published Turbo it is what is known of
it without files."""

from __future__ import annotations

from pathlib import Path

import torch
from support.model_specs import KNOWN
from support.small_z_image import write_z_image as write_small
from support.sparse_checkpoints import write_z_image
from support.specs import assert_alike

from backend.offload.placements import block_modules
from modules.families.registry import identify
from modules.families.source import Source
from modules.families.z_image import Z_IMAGE


def test_a_folder_of_turbo_is_counted_as_the_published_model(tmp_path: Path) -> None:
    source = Source(write_z_image(tmp_path / "turbo"))
    assert identify(source).family is Z_IMAGE
    assert_alike(Z_IMAGE.spec(source, "bf16"), KNOWN["z-image-turbo"], tolerance=0.03, image_tokens=4096)


def test_the_counted_blocks_are_those_that_are_streamed(tmp_path: Path) -> None:
    source = Source(write_small(tmp_path / "mine"))
    for name, counted in Z_IMAGE.spec(source, "fp32").components.items():
        module = Z_IMAGE.load(source, name, torch.float32)
        blocks = tuple(sum(p.numel() for p in block.parameters()) for block in block_modules(module))
        assert blocks == counted.blocks and sum(p.numel() for p in module.parameters()) == counted.parameters, name


def test_the_scheduler_tells_turbo_from_the_base_model(tmp_path: Path) -> None:
    turbo, base = (Z_IMAGE.profile(Source(write_small(tmp_path / name, name == "turbo"))) for name in ("turbo", "base"))
    assert (turbo.steps, turbo.inputs.guidance, turbo.inputs.negative_prompt) == (8, None, False)
    assert (base.steps, base.guidance, base.inputs.negative_prompt) == (50, 4.0, True)
