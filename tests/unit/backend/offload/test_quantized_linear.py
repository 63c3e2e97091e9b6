"""Linear layers with weights in 8 or 4 bits: how they round, what they compute, what they hold, and who may use them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable

import pytest
import torch
from support.small_flux import small_transformer
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5EncoderModel

from backend.devices.emulated import EmulatedDevice
from backend.model_cache_optimizer import ModelCache
from backend.offload.placements import block_modules
from backend.offload.quantized_linear import FORMATS, NF4_LEVELS, QuantizedLinear, quantize
from backend.planning.costs import KINDS, Kind

LARGEST_ERROR = {"fp8": 1 / 16, "fp8_compute": 1 / 16, "nf4": 0.16}
"""Of a weight itself (fp8: three bits of mantissa), of the largest of its block (nf4: half of the widest step)."""


class Model(nn.Module):
    """Two blocks between two layers that belong to no block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64)
        self.transformer_blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(2)
        )
        self.last = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.transformer_blocks:
            x = x + block(x)
        return self.last(x)  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Model:
    return Model().eval()


def in_blocks(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.get_submodule("transformer_blocks").modules() if isinstance(layer, nn.Linear)]


def buffer_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for layer in in_blocks(model) for tensor in layer.buffers())


def fp8_by_definition(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).to(dtype) * scale.to(dtype)


def nf4_by_definition(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rows = []
    for row in weight:
        for block in row.split(64):
            scale = block.abs().max()
            nearest = (block[:, None] / scale - torch.tensor(NF4_LEVELS)).abs().argmin(dim=1)
            rows.append(torch.tensor(NF4_LEVELS)[nearest].to(dtype) * scale.to(dtype))
    return torch.cat(rows).reshape(weight.shape)


DEFINITIONS: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "fp8": fp8_by_definition,
    "fp8_compute": fp8_by_definition,
    "nf4": nf4_by_definition,
}
DEQUANTIZED = ("fp8", "nf4")
"""The formats whose products are those of the dequantized weight."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
class TestALayer:
    def test_rounds_as_the_format_is_defined(self, name: str, dtype: torch.dtype) -> None:
        linear = nn.Linear(128, 32).to(dtype)
        layer = FORMATS[name](linear, dtype)
        assert torch.equal(layer.dequantize(), DEFINITIONS[name](linear.weight.detach().float(), dtype))

    def test_computes_with_the_rounded_weight(self, name: str, dtype: torch.dtype) -> None:
        linear, x = nn.Linear(128, 32).to(dtype), torch.randn(3, 128, dtype=dtype)
        layer = FORMATS[name](linear, dtype)
        rounded = DEFINITIONS[name](linear.weight.detach().float(), dtype)
        if name in DEQUANTIZED:
            assert torch.equal(layer(x), functional.linear(x, rounded, linear.bias))
        else:
            exact = functional.linear(fp8_by_definition(x.float(), torch.float32), rounded.float(), linear.bias.float())
            error = torch.finfo(dtype).eps * exact.abs().max()
            assert layer(x).dtype == dtype and (layer(x).float() - exact).abs().max() <= 8 * error

    def test_takes_inputs_of_any_shape_as_a_linear_layer_does(self, name: str, dtype: torch.dtype) -> None:
        layer = FORMATS[name](nn.Linear(128, 32).to(dtype), dtype)
        x = torch.randn(2, 3, 128, dtype=dtype)
        with torch.inference_mode():
            whole = layer(x)
            assert whole.shape == (2, 3, 32)
            torch.testing.assert_close(layer(x[1, 2]), whole[1, 2], atol=0.01, rtol=0)
            torch.testing.assert_close(layer(x.transpose(0, 1)), whole.transpose(0, 1), atol=0.01, rtol=0)
            assert not layer(torch.zeros(1, 128, dtype=dtype)).isnan().any()

    def test_says_the_type_it_computes_in_and_holds_no_weight_of_it(self, name: str, dtype: torch.dtype) -> None:
        layer = FORMATS[name](nn.Linear(128, 32, bias=False), dtype)
        assert layer.weight.dtype == dtype and layer.weight.shape == (32, 128)
        assert layer.weight.device == layer.quantized.device and not list(layer.parameters())
        assert layer.weight.isnan().all() and layer.weight.untyped_storage().nbytes() == dtype.itemsize

    def test_made_from_stored_tensors_it_is_the_same(self, name: str, dtype: torch.dtype) -> None:
        linear, x = nn.Linear(128, 32).to(dtype), torch.randn(3, 128, dtype=dtype)
        layer = FORMATS[name](linear, dtype)
        empty = nn.Linear(128, 32, device="meta", dtype=dtype)
        empty.bias = linear.bias
        stored = {key: tensor for key, tensor in layer.state_dict().items() if key != "bias"}
        assert torch.equal(FORMATS[name](empty, dtype, stored)(x), layer(x))

    def test_leaves_the_layer_that_it_is_made_from_as_it_was(self, name: str, dtype: torch.dtype) -> None:
        linear = nn.Linear(128, 32)
        before = linear.weight.detach().clone()
        FORMATS[name](linear, dtype)
        assert torch.equal(linear.weight, before)


@pytest.mark.parametrize("name", FORMATS)
def test_only_the_linear_layers_of_the_blocks_are_quantized(model: Model, name: str) -> None:
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    quantize(model, name, torch.float32)
    assert all(isinstance(layer, FORMATS[name]) for layer in in_blocks(model))
    untouched = [path for path in before if not path.startswith("transformer_blocks") or path.endswith("bias")]
    assert all(torch.equal(model.state_dict()[path], before[path]) for path in untouched)


def test_four_bits_are_half_of_eight(model: Model) -> None:
    weights = sum(layer.weight.numel() for layer in in_blocks(model))
    quantize(model, "nf4", torch.float32)
    lookup = 4 * 2 * 256 * len(in_blocks(model))
    assert buffer_bytes(model) - lookup == 0.5625 * weights


@pytest.mark.parametrize("name", FORMATS)
def test_the_model_computes_nearly_the_same(model: Model, name: str) -> None:
    x = torch.randn(5, 64)
    exact = model(x).detach()
    quantize(model, name, torch.float32)
    with torch.inference_mode():
        assert 0 < (model(x) - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", FORMATS)
def test_a_forward_changes_nothing_of_the_model_even_when_it_fails(model: Model, name: str) -> None:
    quantize(model, name, torch.float32)
    held = {path: tensor.data_ptr() for path, tensor in model.state_dict().items()}
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    model(torch.randn(5, 64))
    with pytest.raises(RuntimeError):
        in_blocks(model)[0](torch.randn(5, 7))
    after = model.state_dict()
    assert {path: tensor.data_ptr() for path, tensor in after.items()} == held
    assert all(torch.equal(after[path].float(), tensor.float()) for path, tensor in before.items())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4])
def test_weights_of_every_size_keep_their_digits(name: str, size: float) -> None:
    linear = nn.Linear(64, 128)
    linear.weight.data *= size
    linear.weight.data[3] *= 1000
    linear.weight.data[4] = 0
    exact = linear.weight.detach()
    error = (FORMATS[name](linear, torch.float32).dequantize() - exact).abs()
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert torch.equal(error[4], torch.zeros(64))
    of = largest if name == "nf4" else exact.abs() + largest / 2**13
    assert bool((error <= LARGEST_ERROR[name] * of).all())


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"), [("nf4", 70, 8), ("fp8_compute", 70, 16), ("fp8_compute", 16, 8)]
)
def test_layers_of_a_size_that_the_format_does_not_take_stay_as_they_are(name: str, inputs: int, outputs: int) -> None:
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([nn.Linear(inputs, outputs)])
    layer = model.transformer_blocks[0]
    quantize(model, name, torch.float32)
    assert model.transformer_blocks[0] is layer


def test_products_in_fp8_leave_the_modulations_as_they_are() -> None:
    transformer = small_transformer()
    quantize(transformer, "fp8_compute", torch.float32)
    plain = {path for path, part in transformer.named_modules() if type(part) is nn.Linear and "blocks" in path}
    double = {f"transformer_blocks.{block}.{norm}" for block in range(2) for norm in ("norm1", "norm1_context")}
    modulations = double | {f"single_transformer_blocks.{block}.norm" for block in range(3)}
    assert plain == {f"{path}.linear" for path in modulations}


@pytest.mark.parametrize("name", FORMATS)
def test_t5_computes_in_its_type(name: str) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(config).to(torch.bfloat16).eval()
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        exact = encoder(ids)[0]
        quantize(encoder, name, torch.bfloat16)
        rounded = encoder(ids)[0]
    assert sum(isinstance(layer, QuantizedLinear) for layer in encoder.modules()) == 2 * 7
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded - exact).abs().max() < 0.3 * exact.abs().max()


@pytest.mark.parametrize("name", FORMATS)
def test_a_block_compiles_to_one_graph(model: Model, name: str) -> None:
    """Without the code that is made of it, which takes seconds."""
    assert_compiles(quantize(model, name, torch.float32), "aot_eager")


@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("cc")), reason="torch.compile needs a C compiler")
@pytest.mark.usefixtures("compile_cache")
def test_the_code_that_is_made_of_a_block_computes_the_same(model: Model) -> None:
    assert_compiles(quantize(model, "nf4", torch.float32), "inductor")


def assert_compiles(model: nn.Module, backend: str) -> None:
    block, x = block_modules(model)[0], torch.randn(5, 64)
    compiled = torch.compile(block.forward, fullgraph=True, backend=backend)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), block(x))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_get_what_one_gets(name: str, kind: Kind) -> None:
    """With and without device memory of its own, and also where the blocks are streamed."""
    forwards, inputs = 40, [torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    with torch.inference_mode():
        expected = [quantize(Model().eval(), name, torch.float32)(x) for x in inputs]
    cache = ModelCache(torch.device("cpu"), EmulatedDevice(10**6), {"model": kind})
    cache.register("model", lambda: quantize(Model().eval(), name, torch.float32))
    start = threading.Barrier(len(inputs))
    equal: list[bool] = []

    def work(index: int) -> None:
        start.wait()
        with torch.inference_mode():
            for _ in range(forwards):
                with cache.on_device("model") as (module,):
                    equal.append(torch.equal(module(inputs[index]), expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * (forwards * len(inputs))


@pytest.mark.parametrize("name", FORMATS)
def test_two_threads_may_use_one_resident_model_at_the_same_time(model: Model, name: str) -> None:
    """Without a cache between them, so that their forwards do overlap."""
    quantize(model, name, torch.float32)
    inputs = [torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    with torch.inference_mode():
        expected = [model(x) for x in inputs]
    start = threading.Barrier(len(inputs))
    equal: list[bool] = []

    def work(index: int) -> None:
        start.wait()
        with torch.inference_mode():
            equal.extend(torch.equal(model(inputs[index]), expected[index]) for _ in range(200))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 400
