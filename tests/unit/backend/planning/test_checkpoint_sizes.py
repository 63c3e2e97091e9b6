"""Sizes: those that are published, and those that are read from the headers of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.model_specs import FLUX_DEV, FLUX_SCHNELL, embedded_spec

from backend.core.errors import WeightsError
from backend.memory_management import DeviceMemory, Workload, plan_memory

GB = 10**9


def test_sizes_are_the_published_ones() -> None:
    sizes = {name: component.size() / GB for name, component in FLUX_DEV.components.items()}
    assert sizes["transformer"] == pytest.approx(23.80, abs=0.01) and sizes["text_encoder_2"] == pytest.approx(
        9.52, abs=0.01
    )
    assert sizes["text_encoder"] == pytest.approx(0.25, abs=0.01) and sizes["vae"] == pytest.approx(0.17, abs=0.01)
    assert FLUX_SCHNELL.components == FLUX_DEV.components and FLUX_SCHNELL.steps == 4


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header = json.dumps(
        {
            "__metadata__": {},
            **{name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()},
        }
    ).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.fixture
def embedded_folder(tmp_path: Path) -> Path:
    blocks = {f"transformer_blocks.{i}.ff.weight": [256, 1024] for i in range(2)} | {
        f"single_transformer_blocks.{i}.proj.weight": [256, 512] for i in range(6)
    }
    ends = {"x_embedder.weight": [256, 64], "proj_out.weight": [64, 256]}
    write_safetensors(tmp_path / "flux/transformer/model.safetensors", {**ends, **blocks})
    t5_blocks = {f"encoder.block.{i}.layer.weight": [192, 192] for i in range(3)}
    write_safetensors(tmp_path / "flux/text_encoder_2/model.safetensors", {"shared.weight": [500, 192], **t5_blocks})
    write_safetensors(tmp_path / "flux/text_encoder/model.safetensors", {"embedding.weight": [500, 128]})
    write_safetensors(tmp_path / "flux/vae/model.safetensors", {"decoder.conv_out.weight": [3, 32, 3, 3]})
    write_safetensors(tmp_path / "face_detector.safetensors", {"model.0.conv.weight": [16, 3, 3, 3]})
    write_safetensors(tmp_path / "upscaler.safetensors", {"conv_first.weight": [8, 3, 3, 3]})
    for name, content in {
        "transformer/config.json": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        "text_encoder/config.json": {"hidden_size": 128},
        "text_encoder_2/config.json": {"d_ff": 512, "num_heads": 6, "d_model": 192},
        "vae/config.json": {"block_out_channels": [32, 64, 64, 64]},
        "model_index.json": {"_class_name": "FluxPipeline"},
        "family.json": {"native": 256, "tokens": 40},
    }.items():
        (tmp_path / "flux" / name).write_text(json.dumps(content))
    return tmp_path


def test_the_embedded_family_is_read_from_headers_and_planned(embedded_folder: Path) -> None:
    models = embedded_spec(embedded_folder)
    transformer = models.components["transformer"]
    assert tuple(models.components) == tuple(FLUX_DEV.components) and (
        models.native,
        models.token_pixels,
        models.text_tokens,
    ) == (
        256,
        16,
        40,
    )
    assert transformer.blocks == (256 * 1024,) * 2 + (256 * 512,) * 6 and transformer.outside_blocks == 2 * 256 * 64
    assert transformer.size() == 4 * transformer.parameters
    workload = Workload(256, 256)
    roomy = plan_memory(DeviceMemory("emulated", 200_000_000, flops=1e11), models, workload)
    assert {p.kind for p in roomy.placements.values()} == {"resident"}
    tight = plan_memory(DeviceMemory("emulated", roomy.predicted_peak_bytes - 1, flops=1e11), models, workload)
    assert tight.predicted_peak_bytes < roomy.predicted_peak_bytes


def test_a_missing_or_damaged_embedded_file_is_named(embedded_folder: Path) -> None:
    (embedded_folder / "upscaler.safetensors").write_bytes((8).to_bytes(8, "little") + b"no json!")
    with pytest.raises(WeightsError, match="upscaler.safetensors is damaged"):
        embedded_spec(embedded_folder)
    (embedded_folder / "upscaler.safetensors").unlink()
    with pytest.raises(WeightsError, match="^upscaler: "):
        embedded_spec(embedded_folder)
