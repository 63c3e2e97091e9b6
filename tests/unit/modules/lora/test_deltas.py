"""What a file adds to a layer: what peft's own layers add for it, and what the changed weight would compute, whatever
the layer's own weight is stored in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from support.lora_files import lora_file
from torch import nn
from torch.nn import functional

from backend.offload.quantized_linear import FORMATS
from modules.lora.deltas import Biased, Delta, Dora, Hadamard, Kronecker, Layer, LowRank, Whole, layer_shape, own_weight
from modules.lora.names import LoraNames
from modules.lora.reading import read_lora

INPUTS, OUTPUTS, RANK = 64, 32, 3
PEERS = {
    "LoRA": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["linear", "conv"]),
    "DoRA": LoraConfig(r=RANK, lora_alpha=RANK, use_dora=True, target_modules=["linear", "conv"]),
    "LoRA with a bias": LoraConfig(r=RANK, lora_alpha=RANK, lora_bias=True, target_modules=["linear", "conv"]),
    "LoHa": LoHaConfig(r=RANK, alpha=RANK, target_modules=["linear", "conv"]),
    "LoHa with a core": LoHaConfig(r=RANK, alpha=RANK, use_effective_conv2d=True, target_modules=["linear", "conv"]),
    "LoKr": LoKrConfig(r=RANK, alpha=RANK, decompose_both=True, target_modules=["linear", "conv"]),
    "LoKr with a core": LoKrConfig(r=2, alpha=2, use_effective_conv2d=True, target_modules=["linear", "conv"]),
    "LoKr without ranks": LoKrConfig(r=64, alpha=64, target_modules=["linear", "conv"]),
}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 4


def layers() -> nn.ModuleDict:
    torch.manual_seed(0)
    conv = nn.Conv2d(INPUTS, OUTPUTS, 3, stride=2, padding=1)
    return nn.ModuleDict({"linear": nn.Linear(INPUTS, OUTPUTS), "conv": conv}).requires_grad_(False)


def input_of(layer: nn.Module) -> torch.Tensor:
    return drawn(2, 5, INPUTS) if isinstance(layer, nn.Linear) else drawn(2, INPUTS, 8, 8)


def changed(layer: Any, delta: Delta) -> torch.Tensor:
    input = input_of(layer)
    output = layer(input)
    return output + delta.added(layer, input, output)


@pytest.mark.parametrize("kind", PEERS)
def test_a_file_of_pefts_gives_what_peft_computes(kind: str, tmp_path: Path) -> None:
    plain = layers()
    shapes = {"transformer": {name: layer_shape(layer) for name, layer in plain.items()}}  # type: ignore[arg-type]
    peer = inject_adapter_in_model(PEERS[kind], layers(), adapter_name="x")
    tensors = {name: one.detach() for name, one in peer.state_dict().items() if "base_layer" not in name}
    for number, tensor in enumerate(tensors.values()):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)) / 4)
    file = lora_file({name.replace(".x", ""): one for name, one in tensors.items()}, tmp_path / "lora.safetensors")
    read = read_lora(file, LoraNames().table(shapes), shapes)
    assert read.unplaced == () and read.count == len(tensors)
    for name, layer in plain.items():
        with torch.no_grad():
            expected, found = peer[name](input_of(layer)), changed(layer, read.changes["transformer"][name])
        assert torch.allclose(found, expected, atol=1e-4), f"{name}: {(found - expected).abs().max()}"


def weight_changes(shape: tuple[int, ...]) -> dict[str, Delta]:
    """One of every kind that names a change of the whole weight, for a layer of this shape."""
    outputs, inputs, *kernel = shape
    low_rank = LowRank(drawn(RANK, inputs, *kernel), drawn(outputs, RANK))
    down = drawn(RANK, inputs, *kernel)
    return {
        "LoRA": low_rank,
        "LoHa": Hadamard(shape, 0.5, (), drawn(outputs, RANK), drawn(outputs, RANK), down, down + 1),
        "LoKr": Kronecker(shape, 0.5, (), drawn(4, 8), drawn(outputs // 4, inputs // 8, *kernel)),
        "rows of LoKr": Kronecker(shape, 0.5, ((0, outputs),), drawn(8, 8), drawn(outputs // 4, inputs // 8, *kernel)),
        "whole": Whole(drawn(*shape)),
        "bias": Biased(low_rank, drawn(outputs)),
        "bias alone": Biased(None, drawn(outputs)),
    }


@pytest.mark.parametrize("kind", weight_changes((OUTPUTS, INPUTS)))
@pytest.mark.parametrize("name", layers())
def test_it_adds_what_the_changed_weight_computes(name: str, kind: str) -> None:
    layer: Any = layers()[name]
    delta = weight_changes(layer_shape(layer))[kind]
    weight = layer.weight + delta.matrix()
    bias = layer.bias + (delta.bias if isinstance(delta, Biased) else 0)
    input = input_of(layer)
    product = (
        functional.linear(input, weight, bias) if name == "linear" else functional.conv2d(input, weight, bias, 2, 1)
    )
    assert torch.allclose(changed(layer, delta), product, atol=1e-4)


@pytest.mark.parametrize("name", layers())
def test_lengths_of_columns_scale_the_inputs(name: str) -> None:
    """As LyCORIS trains them by default."""
    layer: Any = layers()[name]
    low_rank, lengths = weight_changes(layer_shape(layer))["LoRA"], drawn(INPUTS).abs()
    weight = layer.weight + low_rank.matrix()
    others = [dim for dim in range(weight.ndim) if dim != 1]
    weight = (
        weight
        * lengths.reshape(1, -1, *[1] * (weight.ndim - 2))
        / torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    )
    input = input_of(layer)
    product = (
        functional.linear(input, weight, layer.bias)
        if name == "linear"
        else functional.conv2d(input, weight, layer.bias, 2, 1)
    )
    assert torch.allclose(changed(layer, Dora(low_rank, lengths, of_inputs=True)), product, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_lengths_are_those_of_the_weight_that_a_quantized_layer_computes_with(format: str) -> None:
    plain = layers()["linear"]
    assert isinstance(plain, nn.Linear)
    layer: Layer = FORMATS[format](plain, torch.float32)
    same = nn.Linear(INPUTS, OUTPUTS)
    same.weight.data, same.bias.data = own_weight(layer), plain.bias.data
    delta = LowRank(drawn(RANK, INPUTS), drawn(OUTPUTS, RANK))
    gains = [Dora(delta, drawn(OUTPUTS).abs(), of_inputs=False) for _ in range(2)]
    for dora, one in zip(gains, (layer, same), strict=True):
        changed(one, dora)
    assert gains[0].gain is not None and gains[1].gain is not None
    assert torch.equal(gains[0].gain, gains[1].gain) and gains[0].gain.isfinite().all()
