"""A header that no file of weights has is refused before anything is counted or built with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from support.gguf_files import random_blocks, write_gguf
from support.headers import write_header
from support.refusals import refusal

from backend.checkpoints.header import read_header


def test_a_header_is_read(tmp_path: Path) -> None:
    header = read_header(write_header(tmp_path / "a.safetensors", {"layers.31.weight": (2, 3)}, {"made by": "us"}))
    assert header.shapes == {"layers.31.weight": (2, 3)} and header.metadata == {"made by": "us"}


@pytest.mark.parametrize(
    "name", ["body.100000000.weight", "transformer_blocks.999999999999999999999.a", "model.2000.sub.1.weight"]
)
def test_a_block_number_that_the_tensors_cannot_reach_is_refused(tmp_path: Path, name: str) -> None:
    file = write_header(tmp_path / "a.safetensors", {name: (1,), "b": (1,)})
    assert "it holds 2 tensors, and one is called" in refusal(lambda: read_header(file))


@pytest.mark.parametrize("shape", [[-1], ["a"], [1.5], [2**50], [None], [True], [[1]]])
def test_a_shape_that_no_tensor_has_is_refused(tmp_path: Path, shape: list[object]) -> None:
    file = write_header(tmp_path / "a.safetensors", {"a": shape})  # type: ignore[dict-item]
    assert "a.safetensors is damaged" in refusal(lambda: read_header(file))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "circle.safetensors").symlink_to("circle.safetensors")
    for path in tmp_path.iterdir():
        assert path.name in refusal(lambda path=path: read_header(path))  # type: ignore[misc]


def test_packed_bytes_count_the_blocks_as_their_file_has_them(tmp_path: Path) -> None:
    blocks = {
        "double_blocks.0.a.weight": (random_blocks(8, 2, "Q4_K"), "Q4_K"),
        "double_blocks.0.b.weight": (random_blocks(8, 2, "Q6_K"), "Q6_K"),
        "double_blocks.0.a.bias": (torch.zeros(8), "F32"),
        "img_in.weight": (torch.zeros(8, 64), "F16"),
    }
    header = read_header(write_gguf(tmp_path / "a.gguf", blocks))
    assert header.packed_bytes(2) == (8 * 2 * (144 + 210) + 8 * 2) / (2 * 8 * 512 + 8)


@pytest.mark.parametrize(("dtype", "rate"), [("F16", 0), ("F8_E4M3", 1 + 4 / 32)])
def test_packed_bytes_are_those_of_quantized_matrices(tmp_path: Path, dtype: str, rate: float) -> None:
    file = write_header(tmp_path / "a.safetensors", {"blocks.0.weight": (16, 32)}, dtype=dtype)
    assert read_header(file).packed_bytes(2) == rate
