"""Weights in 8 bits: rounded row by row, there in full precision only while a layer computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backend.fp8_storage import FORMAT, store_in_fp8


class Model(nn.Module):
    """Two blocks between two layers that are no block's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.transformer_blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.transformer_blocks:
            x = x + block(x)
        return self.last(x)  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval().requires_grad_(False)


def in_blocks(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.get_submodule("transformer_blocks").modules() if isinstance(layer, nn.Linear)]


def test_only_the_matrices_of_the_blocks_are_rounded(model: Model) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store_in_fp8(model, torch.float32)
    assert all(layer.weight.dtype == FORMAT for layer in in_blocks(model))
    untouched = [name for name in before if not name.startswith("transformer_blocks") or name.endswith("bias")]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in untouched)


def test_it_computes_nearly_the_same_and_keeps_its_eight_bits(model: Model) -> None:
    x = torch.randn(5, 16)
    exact = model(x)
    store_in_fp8(model, torch.float32)
    with torch.inference_mode():
        once, twice = model(x), model(x)
    assert (once - exact).abs().max() < 0.05 * exact.abs().max()
    assert torch.equal(once, twice)
    assert all(layer.weight.dtype == FORMAT for layer in in_blocks(model))


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4])
def test_weights_of_every_size_keep_their_digits(model: Model, size: float) -> None:
    layer = in_blocks(model)[0]
    layer.weight.data *= size
    layer.weight.data[3] *= 1000
    layer.weight.data[4] = 0
    exact = layer.weight.data.clone()
    store_in_fp8(model, torch.float32)
    rounded = layer.weight.data.float() * layer.get_buffer("row_scale")
    assert torch.equal(rounded[4], exact[4])
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert bool(((rounded - exact).abs() <= exact.abs() / 16 + largest / 2**17).all())  # three bits behind the point


def test_an_error_in_the_middle_leaves_the_eight_bits_in_place(model: Model) -> None:
    store_in_fp8(model, torch.float32)
    x = torch.randn(5, 16)
    expected = model(x)
    with pytest.raises(RuntimeError):
        model.get_submodule("transformer_blocks")[0][0](torch.randn(5, 7))  # type: ignore[index]
    assert all(layer.weight.dtype == FORMAT for layer in in_blocks(model))
    assert torch.equal(model(x), expected)
