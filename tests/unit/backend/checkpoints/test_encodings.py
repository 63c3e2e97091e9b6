"""Weights that a file keeps in several tensors have the values that their own libraries compute, or are refused by
name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.bitsandbytes_files import SHAPES, key, made
from support.refusals import refusal

from backend.checkpoints.header import read_header
from backend.checkpoints.loader import read_tensors
from backend.checkpoints.packed_weight import PackedWeight

Tensors = dict[str, torch.Tensor]
FLAT, NESTED = (key("nf4", 64, nested, SHAPES[0]) for nested in (False, True))
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
WEIGHT = torch.randn(96, 128, generator=torch.Generator().manual_seed(1)) * 0.05


def read(folder: Path, tensors: Tensors, dtype: torch.dtype = torch.float32, **metadata: str) -> Tensors:
    file = folder / "model.safetensors"
    save_file(tensors, file, metadata)
    weights = read_tensors([file], dtype)
    header = read_header(file)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == header.shapes
    return {name: weight.values() if isinstance(weight, PackedWeight) else weight for name, weight in weights.items()}


def json_tensor(**values: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


SCALES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one number": lambda weight: weight.abs().max() / 448,
    "a list of one": lambda weight: (weight.abs().max() / 448).reshape(1),
    "one for a row": lambda weight: weight.abs().amax(1, keepdim=True) / 448,
    "a flat one for a row": lambda weight: weight.abs().amax(1) / 448,
    "one for a square": lambda weight: weight.unflatten(0, (3, 32)).unflatten(2, (4, 32)).abs().amax((1, 3)) / 448,
}


def spread(scale: torch.Tensor) -> torch.Tensor:
    """The scale of every weight."""
    if scale.dim() == 2 and scale.shape[1] == 4:
        return scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return scale.reshape(-1, 1)


@pytest.mark.parametrize("form", SCALES)
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("stored", [E4M3, E5M2, torch.int8])
def test_scaled_weights_have_the_values_that_their_scales_give(
    tmp_path: Path, form: str, name: str, stored: torch.dtype
) -> None:
    scale = SCALES[form](WEIGHT) * (448 / 127 if stored is torch.int8 else 1)
    small = (WEIGHT / spread(scale)).round() if stored is torch.int8 else WEIGHT / spread(scale)
    tensors = {"a.weight": small.to(stored), f"a.{name}": scale.contiguous(), "scaled_fp8": torch.zeros(2, dtype=E4M3)}
    found = read(tmp_path, tensors | {"a.scale_input": torch.ones(1), "a.bias": torch.ones(96)})
    assert found.keys() == {"a.weight", "a.bias"}
    assert torch.equal(found["a.weight"], small.to(stored).float() * spread(scale))
    assert (found["a.weight"] - WEIGHT).abs().max() < WEIGHT.abs().max() / 8


def test_squares_at_the_edge_may_be_smaller(tmp_path: Path) -> None:
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = torch.ones(100, 80).to(E4M3)
    found = read(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale})["a.weight"]
    assert torch.equal(found, scale.repeat_interleave(50, 0).repeat_interleave(40, 1))


def test_a_scaled_weight_that_is_no_matrix_is_read(tmp_path: Path) -> None:
    weight = torch.arange(-4.0, 4).view(2, 2, 2, 1)
    found = read(tmp_path, {"a.weight": weight.to(E4M3), "a.scale_weight": torch.tensor([0.5])})
    assert torch.equal(found["a.weight"], weight * 0.5)


def test_fp8_without_a_scale_is_read_as_it_is(tmp_path: Path) -> None:
    found = read(tmp_path, {"a.weight": WEIGHT.to(E4M3)}, torch.bfloat16)
    assert torch.equal(found["a.weight"], WEIGHT.to(E4M3).bfloat16())


@pytest.mark.parametrize("format", ["float8_e4m3fn", "int8_tensorwise"])
def test_comfys_own_description_of_a_layer_is_understood(tmp_path: Path, format: str) -> None:
    stored = torch.full((4, 32), 3).to(E4M3 if "8_e" in format else torch.int8)
    tensors = {"a.weight": stored, "a.weight_scale": torch.tensor(0.25)}
    for extra, metadata in (
        ({"a.comfy_quant": json_tensor(format=format)}, {}),
        ({}, {"_quantization_metadata": json.dumps({"layers": {"a": {"format": format}}})}),
    ):
        found = read(tmp_path, tensors | extra, **metadata)
        assert found.keys() == {"a.weight"} and torch.equal(found["a.weight"], torch.full((4, 32), 0.75))


REFUSED: Mapping[str, tuple[Tensors, dict[str, str], str]] = {
    "comfy nvfp4": ({"a.weight": WEIGHT, "a.comfy_quant": json_tensor(format="nvfp4")}, {}, "nvfp4"),
    "comfy rotated": (
        {"a.weight": WEIGHT, "a.comfy_quant": json_tensor(format="int8_tensorwise", convrot=True)},
        {},
        "rotated",
    ),
    "comfy in the header": (
        {"a.weight": WEIGHT},
        {"_quantization_metadata": json.dumps({"layers": {"a": {"format": "mxfp8"}}})},
        "mxfp8",
    ),
    "comfy nonsense": ({"a.weight": WEIGHT}, {"_quantization_metadata": "[1"}, "_quantization_metadata"),
    "comfy no text": ({"a.weight": WEIGHT, "a.comfy_quant": torch.zeros(3)}, {}, "no text"),
    "nunchaku": ({"a.qweight": WEIGHT.to(torch.int8), "a.wscales": WEIGHT}, {}, "nunchaku"),
    "GPTQ": ({"a.qweight": WEIGHT.int(), "a.qzeros": WEIGHT.int(), "a.scales": WEIGHT}, {}, "GPTQ"),
    "quanto": ({"a.weight._data": WEIGHT.to(torch.int8), "a.weight._scale": WEIGHT}, {}, "quanto"),
    "bytes without a scale": ({"a.weight": WEIGHT.to(torch.uint8)}, {}, "without a scale"),
    "a scale of another shape": ({"a.weight": WEIGHT.to(E4M3), "a.weight_scale": torch.ones(7)}, {}, "a.weight"),
    "a scale in whole numbers": ({"a.weight": WEIGHT.to(E4M3), "a.weight_scale": torch.ones(1).int()}, {}, "I32"),
    "a scaled weight in bytes": ({"a.weight": WEIGHT.to(torch.uint8), "a.weight_scale": torch.ones(1)}, {}, "U8"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_named(tmp_path: Path, what: str) -> None:
    tensors, metadata, word = REFUSED[what]
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata)
    told = refusal(lambda: read_header(file))
    assert "model.safetensors" in told and word in told


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_four_bits_have_the_values_of_bitsandbytes(
    tmp_path: Path, format: str, block: int, nested: bool, shape: tuple[int, int]
) -> None:
    tensors, expected = made(key(format, block, nested, shape))
    found = read(tmp_path, tensors)
    assert found.keys() == {"a.weight"} and torch.equal(found["a.weight"], expected)
    assert read_header(tmp_path / "model.safetensors").precision == format


def test_another_table_of_levels_is_used(tmp_path: Path) -> None:
    tensors, expected = made(FLAT)
    tensors["a.weight.quant_map"] = tensors["a.weight.quant_map"] * 2
    assert torch.equal(read(tmp_path, tensors)["a.weight"], expected * 2)


def test_eight_bits_have_the_values_of_bitsandbytes(tmp_path: Path) -> None:
    tensors, expected = made("int8")
    assert torch.allclose(read(tmp_path, tensors)["a.weight"], expected.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("quant_state.bitsandbytes__nf4", json_tensor(shape=[24, 128], blocksize=64)),
        ("quant_state.bitsandbytes__nf4", json_tensor(shape=[240, 128], blocksize=64, nested_blocksize=256)),
        ("quant_state.bitsandbytes__nf4", json_tensor(shape=[24, -128], blocksize=64, nested_blocksize=256)),
        ("quant_state.bitsandbytes__nf4", json_tensor(shape=None, blocksize=64, nested_blocksize=256)),
        ("quant_state.bitsandbytes__nf4", json_tensor(shape=[24, 128], blocksize=0, nested_blocksize=256)),
        ("quant_state.bitsandbytes__nf4", json_tensor(shape=[24, 128], blocksize=2**40, nested_blocksize=256)),
        ("quant_state.bitsandbytes__nf4", torch.full((9,), 91, dtype=torch.uint8)),
        ("quant_state.bitsandbytes__nf4", torch.zeros(9)),
        ("absmax", torch.zeros(3, dtype=torch.uint8)),
        ("absmax", torch.zeros(48)),
        ("quant_map", torch.zeros(3)),
        ("nested_quant_map", torch.zeros(3)),
        ("nested_absmax", torch.zeros(3)),
    ],
)
def test_four_bits_that_do_not_fit_are_one_line(tmp_path: Path, part: str, wrong: torch.Tensor) -> None:
    tensors, _ = made(NESTED)
    save_file({**tensors, f"a.weight.{part}": wrong}, tmp_path / "model.safetensors")
    assert "is damaged" in refusal(lambda: read_header(tmp_path / "model.safetensors"))


def test_parts_of_one_weight_may_lie_in_two_files(tmp_path: Path) -> None:
    tensors, expected = made(NESTED)
    names = sorted(tensors)
    files = [tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"]
    for file, part in zip(files, (names[:3], names[3:])):
        save_file({name: tensors[name] for name in part}, file)
    weight = read_tensors(files, torch.float32)["a.weight"]
    assert isinstance(weight, PackedWeight) and torch.equal(weight.values(), expected)
