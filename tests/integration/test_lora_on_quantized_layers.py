"""LoRA (peft) on layers with few bits: added to their output, in every placement, from several threads."""

from __future__ import annotations

import threading
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from support.gguf_files import gguf_type
from torch import nn

from backend.checkpoints.packed_weight import PackedWeight
from backend.devices.emulated import EmulatedDevice
from backend.offload.packed_linear import keep_packed
from backend.offload.placements import placed_model
from backend.offload.quantized_linear import FORMATS, QuantizedLinear, quantize
from backend.planning.costs import KINDS, Kind

WIDTH = 64
STORED = (*FORMATS, "Q8_0", "Q4_0")
INPUTS = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(7))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.transformer_blocks:
            x = x + block(x)
        return x


def stored_in(name: str) -> Any:
    """The same model every time, its layers in that format."""
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False)
    if name in FORMATS:
        return quantize(model, name, torch.float32)
    for layer in (part for part in model.modules() if isinstance(part, nn.Linear)):
        rows = torch.from_numpy(gguf.quants.quantize(layer.weight.numpy(), gguf_type(name)).copy())
        layer.weight = nn.Parameter(PackedWeight(name, [rows], WIDTH, torch.float32), requires_grad=False)
    return keep_packed(model, torch.float32)


def with_adapter(name: str) -> Any:
    """That model with a random LoRA of rank 4 and scale 0.5 on every layer of its blocks."""
    model = stored_in(name)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=r".*\.\d\.0"), model)
    generator = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if "lora_" in path:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", STORED)
def test_the_adapter_is_added_to_the_output_of_the_layer(name: str) -> None:
    plain, adapted = stored_in(name), with_adapter(name)
    layers = [part for part in adapted.modules() if isinstance(part, LoraLinear)]
    assert len(layers) == 4 and all(isinstance(layer.base_layer, QuantizedLinear) for layer in layers)
    first, x = layers[0], INPUTS[0]
    down, up = (part["default"].weight for part in (first.lora_A, first.lora_B))
    with torch.inference_mode():
        expected = plain.transformer_blocks[0][0](x) + 0.5 * x @ down.T @ up.T
        torch.testing.assert_close(first(x), expected)
        assert not torch.allclose(adapted(x), plain(x), atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STORED)
def test_in_every_placement_the_bits_are_the_same(name: str, kind: Kind) -> None:
    with torch.inference_mode():
        expected = with_adapter(name)(INPUTS[0])
    placed = placed_model(with_adapter(name), EmulatedDevice(10**6, pin_bytes=10**6), kind, kept=1)
    placed.load_standing()
    placed.load()
    with torch.inference_mode():
        assert torch.equal(placed.module(INPUTS[0]), expected)
        assert torch.equal(placed.module(INPUTS[0]), expected)


@pytest.mark.parametrize("name", STORED)
def test_two_threads_get_what_one_gets(name: str) -> None:
    model = with_adapter(name)
    with torch.inference_mode():
        expected = [model(x) for x in INPUTS]
    start, equal = threading.Barrier(2), list[bool]()

    def work(index: int) -> None:
        start.wait()
        with torch.inference_mode():
            equal.extend(torch.equal(model(INPUTS[index]), expected[index]) for _ in range(50))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 100


@pytest.mark.parametrize("name", STORED)
def test_adapters_are_taken_off_again_without_a_trace(name: str) -> None:
    adapted = with_adapter(name)
    for block in adapted.transformer_blocks:
        block[0] = block[0].base_layer
    with torch.inference_mode():
        assert torch.equal(adapted(INPUTS[0]), stored_in(name)(INPUTS[0]))
