"""A packed weight behaves as the matrix of its values, and stays packed where rows stay whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.gguf_files import random_blocks
from torch import nn

from backend.checkpoints.entries import WEIGHTS_AT_ONCE
from backend.checkpoints.packed_weight import PackedWeight, unpack


def packed(seed: int = 0, rows: int = 12, format: str = "Q4_K") -> PackedWeight:
    return PackedWeight(format, [random_blocks(rows, 2, format, seed)], 512, torch.float32)


BY_ROWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "chunk": lambda weight: weight.chunk(3)[1],
    "split": lambda weight: weight.split([2, 7, 3])[1],
    "slice": lambda weight: weight[3:9],
    "clone": torch.clone,
    "detach": torch.detach,
    "join": lambda weight: torch.cat([weight[6:], weight[:6]]),
    "parameter": lambda weight: nn.Parameter(weight, requires_grad=False),
}


@pytest.mark.parametrize("way", BY_ROWS)
def test_rows_are_taken_as_they_are(way: str) -> None:
    taken, expected = BY_ROWS[way](packed()), BY_ROWS[way](packed().values())
    assert isinstance(taken, PackedWeight) and taken.shape == expected.shape
    assert torch.equal(taken.values(), expected)


BY_VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "columns": lambda weight: weight[:, 5:9],
    "columns in parts": lambda weight: weight.chunk(2, dim=1)[1],
    "joined columns": lambda weight: torch.cat([weight, weight], dim=1),
    "joined with values": lambda weight: torch.cat([weight, weight + 1]),
    "joined with another format": lambda weight: torch.cat([weight, packed(format="Q6_K")]),
    "transposed": lambda weight: weight.T,
    "another type": torch.Tensor.double,
    "product": lambda weight: nn.functional.linear(torch.ones(2, 512), weight),
}


@pytest.mark.parametrize("way", BY_VALUES)
def test_anything_else_is_done_with_the_values(way: str) -> None:
    found, expected = BY_VALUES[way](packed()), BY_VALUES[way](packed().values())
    assert not isinstance(found, PackedWeight) and torch.equal(found, expected)


def test_many_rows_are_dequantized_in_parts() -> None:
    rows = WEIGHTS_AT_ONCE // 512 + 3
    few = packed(rows=5)
    many = PackedWeight("Q4_K", [few.parts[0].repeat(-(-rows // 5), 1)[:rows]], 512, torch.bfloat16)
    assert torch.equal(many.values()[5 * (rows // 5 - 1) :][:5], few.values().bfloat16())


def test_a_module_is_unpacked_in_place() -> None:
    module = nn.Sequential(nn.Linear(512, 12, bias=False))
    module[0].weight = nn.Parameter(packed(), requires_grad=False)
    assert torch.equal(module(torch.eye(512)), packed().values().T)
    assert type(unpack(module)[0].weight) is nn.Parameter  # type: ignore[index]
    assert torch.equal(module[0].weight, packed().values())
