"""Every number format of GGUF files has the values that llama.cpp's own package computes."""

from __future__ import annotations

import pytest
import torch
from support.gguf_files import gguf_reference, random_blocks

from backend.checkpoints.entries import GGUF_BLOCKS
from backend.checkpoints.gguf_types import DECODERS, LEVEL_DECODERS, gguf_values


def test_every_format_that_a_header_may_name_is_decoded() -> None:
    assert DECODERS.keys() | LEVEL_DECODERS.keys() == GGUF_BLOCKS.keys()


@pytest.mark.parametrize("format", GGUF_BLOCKS)
def test_values_are_those_of_the_reference(format: str) -> None:
    data = random_blocks(6, 4, format)
    values = gguf_values(data, format)
    assert values.shape == (6, 4 * GGUF_BLOCKS[format][0]) and values.std() > 0
    assert torch.equal(values, gguf_reference(data, format))
