"""Weights in 8 or 4 bits: rounded piece by piece, there in full precision only while a layer computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backend.offload.quantized_linear import FORMATS, FP8, quantize

STORED = {"fp8": FP8, "nf4": torch.uint8}
COARSE = {"fp8": 1 / 16, "nf4": 0.16}
"""Largest error of a weight: of itself (fp8, three bits behind the point), of its block's largest (nf4, half the
widest step)."""


class Model(nn.Module):
    """Two blocks between two layers that are no block's."""

    def __init__(self) -> None:
        super().__init__()
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
    torch.manual_seed(0)
    return Model().eval()


def in_blocks(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.get_submodule("transformer_blocks").modules() if isinstance(layer, nn.Linear)]


def block_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for layer in in_blocks(model) for t in (layer.weight, *layer.buffers()))


@pytest.mark.parametrize("stored_as", FORMATS)
def test_only_the_matrices_of_the_blocks_are_rounded(model: Model, stored_as: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize(model, stored_as, torch.float32)
    assert all(layer.weight.dtype == STORED[stored_as] for layer in in_blocks(model))
    untouched = [name for name in before if not name.startswith("transformer_blocks") or name.endswith("bias")]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in untouched)


def test_four_bits_are_half_of_eight(model: Model) -> None:
    weights = sum(layer.weight.numel() for layer in in_blocks(model))
    quantize(model, "nf4", torch.float32)
    lookup = 4 * 2 * 256 * len(in_blocks(model))
    assert block_bytes(model) - lookup == 0.5625 * weights


@pytest.mark.parametrize("stored_as", FORMATS)
def test_it_computes_nearly_the_same_and_stays_small(model: Model, stored_as: str) -> None:
    x = torch.randn(5, 64)
    exact = model(x).detach()
    quantize(model, stored_as, torch.float32)
    with torch.inference_mode():
        once, twice = model(x), model(x)
    assert (once - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(once, twice)
    assert all(layer.weight.dtype == STORED[stored_as] for layer in in_blocks(model))


@pytest.mark.parametrize("stored_as", FORMATS)
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4])
def test_weights_of_every_size_keep_their_digits(model: Model, size: float, stored_as: str) -> None:
    layer = in_blocks(model)[0]
    layer.weight.data *= size
    layer.weight.data[3] *= 1000
    layer.weight.data[4] = 0
    exact = layer.weight.data.clone()
    quantize(model, stored_as, torch.float32)
    error = (FORMATS[stored_as].dequantized(layer, torch.float32) - exact).abs()
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert torch.equal(error[4], torch.zeros(64))
    of = exact.abs() + largest / 2**13 if stored_as == "fp8" else largest
    assert bool((error <= COARSE[stored_as] * of).all())


def test_rows_that_are_no_whole_blocks_stay_as_they_are() -> None:
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([nn.Linear(70, 8)])
    layer, x = model.transformer_blocks[0], torch.randn(3, 70)
    exact = layer(x)
    quantize(model, "nf4", torch.float32)
    assert torch.equal(layer(x), exact)


@pytest.mark.parametrize("stored_as", FORMATS)
def test_an_error_in_the_middle_leaves_the_narrow_weights_in_place(model: Model, stored_as: str) -> None:
    quantize(model, stored_as, torch.float32)
    x = torch.randn(5, 64)
    expected = model(x)
    with pytest.raises(RuntimeError):
        in_blocks(model)[0](torch.randn(5, 7))
    assert all(layer.weight.dtype == STORED[stored_as] for layer in in_blocks(model))
    assert torch.equal(model(x), expected)
