"""What operators return on a fake card. torch's functions for shapes run once for each kind of call; after that the
result is made of what they said, which takes a fifth of the time.

Two calls are alike when their tensors agree in shape, order, number format and device, and everything else is equal:
where in their memory they begin makes no difference, because views are described from there. A result is new memory, a view of an argument, or an argument itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry

from backend.compat import storage_id
from backend.devices.emulated import tensors_in

if TYPE_CHECKING:
    from support.fake_cuda import FakeCard


@dataclass(frozen=True)
class _Made:
    """One tensor of a result. ``source`` is the place of the argument that it is a view of, -1 for new memory;
    ``offset`` is counted from the beginning of that argument. ``same`` says that it is that argument."""

    source: int
    same: bool
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class _Result:
    """Of one kind of call; ``kind`` is what holds the tensors where there are several."""

    made: tuple[_Made | None, ...]
    kind: type | None
    flops: int


class Results:
    """Runs operators of a card."""

    _known: ClassVar[dict[Any, _Result]] = {}
    """Of all cards: what an operator returns does not depend on the card."""

    def __init__(self, card: FakeCard) -> None:
        self.card = card

    def of(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = list(tensors_in((*args, *kwargs.values())))
        key = (func, looks(args), *((name, looks(value)) for name, value in kwargs.items()))
        known = self._known.get(key)
        if known is None:
            return self._first(func, args, kwargs, given, key)
        self.card.flops += known.flops
        made = [one and self._make(one, given) for one in known.made]
        return made[0] if known.kind is None else known.kind(made)

    def _first(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[torch.Tensor], key: Any
    ) -> Any:
        card = self.card
        with card.mode:
            result = func(*args, **kwargs)
        card.mode.fake_tensor_converter.meta_converter.tensor_memo.clear()  # torch swaps no tensor that is in it
        outputs = list(tensors_in([result]))
        for tensor in outputs:
            card.note(tensor)
        packet, flops = func.overloadpacket, 0
        if packet in flop_registry and outputs and outputs[0].device.type == "cuda":
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
            card.flops += flops
        several = type(result) in (tuple, list)
        results = result if several else [result]
        if all(one is None or isinstance(one, FakeTensor) for one in results):
            made = tuple(one if one is None else _describe(one, given) for one in results)
            self._known[key] = _Result(made, type(result) if several else None, flops)
        return result

    def _make(self, one: _Made, given: Sequence[torch.Tensor]) -> torch.Tensor:
        if one.same:
            return given[one.source]
        if one.source < 0:
            return self.card.empty(one.shape, one.dtype, one.device, one.strides)
        source = given[one.source]
        return self.card.view(source, one.shape, one.strides, source.storage_offset() + one.offset, one.dtype)


def _describe(tensor: FakeTensor, given: Sequence[torch.Tensor]) -> _Made:
    source, same, offset = -1, False, 0
    for place, one in enumerate(given):
        if one is tensor or (isinstance(one, FakeTensor) and storage_id(one) == storage_id(tensor)):
            source, same, offset = place, one is tensor, tensor.storage_offset() - one.storage_offset()
            if same:
                break
    form = tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.fake_device
    return _Made(source, same, offset, *form)


def looks(value: Any) -> Any:
    """What of an argument decides what a call does; hashable."""
    if isinstance(value, torch.Tensor):
        device = value.fake_device if isinstance(value, FakeTensor) else (value.device,)
        return value.shape, value.stride(), value.dtype, device
    if isinstance(value, list | tuple):
        return tuple(map(looks, value))
    return type(value), value
