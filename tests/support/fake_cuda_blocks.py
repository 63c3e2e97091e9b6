"""Blocks of a network that are alike are run once on a fake card; for the others what that showed is counted.

A step of FLUX.1-dev is 7,000 operators in 57 blocks of two kinds. Two calls are alike when the class, the tensors of
the module and the arguments agree in shape, order, number format and device. A call is run whole where something
changes what is inside of the block, as a LoRA does; it is not remembered where it copied, waited, or gave back memory of
an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.t5.modeling_t5 import T5Block

from backend.compat import storage_id
from backend.devices.emulated import tensors_in

if TYPE_CHECKING:
    from support.fake_cuda import FakeCard

BLOCKS: tuple[type[nn.Module], ...] = (
    FluxTransformerBlock,
    FluxSingleTransformerBlock,
    Flux2TransformerBlock,
    Flux2SingleTransformerBlock,
    ZImageTransformerBlock,
    BasicTransformerBlock,
    ResnetBlock2D,
    CLIPEncoderLayer,
    T5Block,
    Qwen3DecoderLayer,
)


@dataclass(frozen=True)
class _Seen:
    """What one call did: operations, bytes at the worst moment above those at the beginning, results. A result that is
    an argument is the argument's place."""

    flops: int
    above: int
    results: tuple[torch.Tensor | int, ...]
    structure: TreeSpec


SEEN: dict[Any, _Seen] = {}
"""On all cards: what a block does, does not depend on the card."""


@contextmanager
def alike_blocks_run_once(card: FakeCard) -> Iterator[None]:
    """Inside, the blocks of diffusers and transformers do so."""
    with ExitStack() as stack:
        for kind in BLOCKS:
            stack.enter_context(patch.object(kind, "forward", _forward(card, kind.forward)))
        yield


def _forward(card: FakeCard, run: Callable[..., Any]) -> Callable[..., Any]:
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given, structure = tree_flatten((args, kwargs))
        parts, tensors = list(module.modules()), [*module.parameters(), *module.buffers()]
        whole = any("forward" in vars(part) or part._forward_pre_hooks or part._forward_hooks for part in parts[1:])
        key = (tuple(map(type, parts)), tuple(map(_looks, (*tensors, *given))), str(structure))
        known = SEEN.get(key)
        if whole or known is None:
            before = card.bytes_uploaded, card.bytes_downloaded, len(card.waits)
            flops, start, peak = card.flops, card.allocated_bytes, card.peak_bytes
            card.peak_bytes = start
            result = run(module, *args, **kwargs)
            above, card.peak_bytes = card.peak_bytes - start, max(peak, card.peak_bytes)
            results, form = tree_flatten(result)
            places = {id(one): place for place, one in enumerate(given)}
            looks = tuple(places[id(one)] if id(one) in places else _without_data(one) for one in results)
            made = {storage_id(one) for one in tensors_in(results) if id(one) not in places}
            alone = not made & {storage_id(one) for one in tensors_in(given)}
            if alone and not whole and before == (card.bytes_uploaded, card.bytes_downloaded, len(card.waits)):
                SEEN[key] = _Seen(card.flops - flops, above, looks, form)
            return result
        card.flops += known.flops
        card.require_room(known.above)
        results = [given[one] if isinstance(one, int) else card.empty_like(one) for one in known.results]
        return tree_unflatten(results, known.structure)

    return forward


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _looks(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return value if isinstance(value, int | float | str | None) else type(value)
