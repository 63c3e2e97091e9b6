"""Linear layers that keep the bits of their file: the same results as with the dequantized weights, wherever the bits
are and whoever uses them."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch
from support.fake_cuda import WRITTEN_FOR, FakeCard
from support.gguf_files import random_blocks
from support.slow import sampled
from torch import nn

from backend.checkpoints.entries import GGUF_BLOCKS
from backend.checkpoints.packed_weight import PackedWeight, unpack
from backend.devices.emulated import EmulatedDevice
from backend.model_cache_optimizer import ModelCache
from backend.offload.packed_linear import PackedLinear, keep_packed
from backend.offload.placements import block_modules
from backend.offload.quantized_linear import quantize
from backend.planning.costs import KINDS, PACKED_SCRATCH_BYTES, Kind

WIDTH = 256


def packed(format: str, rows: int, seed: int, dtype: torch.dtype = torch.float32) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    if format == "NF4":
        bits = torch.randint(0, 256, (rows, WIDTH // 2), generator=generator, dtype=torch.uint8)
        return PackedWeight(format, [bits, torch.rand(rows, WIDTH // 64, generator=generator) / 16], WIDTH, dtype)
    if format == "F8_E4M3":
        values = torch.randn(rows, WIDTH, generator=generator).to(torch.float8_e4m3fn)
        return PackedWeight(format, [values, torch.rand(rows, 1, generator=generator) / 16], WIDTH, dtype)
    blocks = WIDTH // GGUF_BLOCKS[format][0]
    return PackedWeight(format, [random_blocks(rows, blocks, format, seed)], WIDTH, dtype)


class Model(nn.Module):
    """Two blocks behind a layer that belongs to no block."""

    def __init__(self, format: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.transformer_blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
        layers = [part for part in self.modules() if isinstance(part, nn.Linear)]
        for seed, layer in enumerate(layers):
            layer.weight = nn.Parameter(packed(format, WIDTH, seed, dtype), requires_grad=False)
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.linspace(-1, 1, WIDTH, dtype=dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.transformer_blocks:
            x = x + block(x)
        return x


FORMATS = ("Q8_0", "Q4_K", "Q6_K", "IQ4_NL", "NF4", "F8_E4M3")
INPUT = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(7))


def kept(format: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return unpack(keep_packed(Model(format, dtype).eval(), dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_results_are_those_of_the_dequantized_weights(format: str, dtype: torch.dtype) -> None:
    model, plain = kept(format, dtype), unpack(Model(format, dtype))
    assert sum(isinstance(part, PackedLinear) for part in model.modules()) == 2
    assert torch.equal(model(INPUT.to(dtype)), plain(INPUT.to(dtype)))


@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_holds_the_bytes_of_the_file(format: str) -> None:
    layer = next(part for part in kept(format).modules() if isinstance(part, PackedLinear))
    weight = packed(format, WIDTH, 1)
    assert sum(tensor.nbytes for name, tensor in layer.named_buffers() if name != "levels") == sum(
        part.nbytes for part in weight.parts
    )
    assert layer.weight.shape == (WIDTH, WIDTH) and layer.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["fp8", "nf4"])
def test_packed_weights_can_be_quantized_anew(name: str) -> None:
    requantized = quantize(Model("Q8_0"), name, torch.float32)
    expected = quantize(unpack(Model("Q8_0")), name, torch.float32)
    assert torch.equal(unpack(requantized)(INPUT), expected(INPUT))


@pytest.mark.parametrize("format", ["Q4_K", "NF4"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_get_the_same_in_every_placement(format: str, kind: Kind) -> None:
    with torch.inference_mode():
        expected = unpack(Model(format))(INPUT)
    cache = ModelCache(torch.device("cpu"), EmulatedDevice(10**7), {"model": kind})
    cache.register("model", lambda: kept(format))
    equal: list[bool] = []

    def work() -> None:
        with torch.inference_mode():
            for _ in range(5):
                with cache.on_device("model") as (module,):
                    equal.append(torch.equal(module(INPUT), expected))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 10


@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="torch.compile needs a C compiler")
@pytest.mark.usefixtures("compile_cache")
@pytest.mark.parametrize(
    ("format", "backend"), sampled([("Q4_K", "aot_eager"), ("Q6_K", "inductor"), ("NF4", "aot_eager")], 2)
)
def test_a_block_compiles_to_one_graph(format: str, backend: str) -> None:
    """``test_quantized_linear.py`` generates code for NF4; for Q4_K a C++ compiler needs ten seconds."""
    block = block_modules(kept(format))[0]
    compiled = torch.compile(block.forward, fullgraph=True, backend=backend)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(INPUT), block(INPUT))


@pytest.mark.skipif(not torch.__version__.startswith(WRITTEN_FOR), reason=f"the fake card is for torch {WRITTEN_FOR}")
@pytest.mark.parametrize("format", [*GGUF_BLOCKS, "NF4", "F8_E4M3"])
def test_on_a_card_the_host_never_waits_and_little_memory_is_taken_beside_the_weight(format: str) -> None:
    with FakeCard(24) as card, torch.inference_mode():
        layer = nn.Sequential(kept(format, torch.bfloat16).get_submodule("transformer_blocks.0.0")).to("cuda")
        tokens = INPUT.to("cuda", torch.bfloat16)
        card.waits.clear()
        before = card.peak_bytes = card.allocated_bytes
        assert layer(tokens).device.type == "cuda"
    assert not card.waits
    assert card.peak_bytes - before <= (2 + PACKED_SCRATCH_BYTES) * WIDTH * WIDTH + 50_000
