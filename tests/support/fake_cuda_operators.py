"""Operators of a fake card that copy between host and card, hand a value to the host, or whose result has no size that
the shapes decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from backend.compat import storage_id

if TYPE_CHECKING:
    from support.fake_cuda import FakeCard

aten = torch.ops.aten


class HollowTensorRead(AssertionError):
    """The value of a weight was asked for that a sparse checkpoint does not have."""


def meta_of(tensor: FakeTensor) -> torch.Tensor:
    """The tensor on the meta device that stands behind a fake one; it shares its storage."""
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.empty(0, dtype=tensor.dtype, device="meta").set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        )


def _to_copy(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensor, dtype = args[0], kwargs.get("dtype") or args[0].dtype
    target = torch.device(kwargs.get("device") or tensor.device).type
    here = tensor.device.type
    if here == "cuda" and target == "cpu":
        return card.copy_to_host(tensor, dtype, not kwargs.get("non_blocking"))
    if here == "cpu" and target == "cuda":
        hollow = isinstance(tensor, FakeTensor)
        card.copy_to_card(tensor, hollow)
        strides = tensor.stride() if tensor.is_contiguous() or kwargs.get("memory_format") is None else None
        made = card.empty(tensor.shape, dtype, torch.device("cuda", 0), _dense(tensor, strides))
        if hollow:
            card.weights.add(storage_id(made))
        return made
    return NotImplemented


def _dense(tensor: torch.Tensor, strides: Sequence[int] | None) -> Sequence[int] | None:
    """The strides of a copy, which keeps the order of the sides and leaves no gaps."""
    if strides is None or tensor.numel() == 0 or 0 in strides:
        return None
    order = sorted(range(tensor.dim()), key=lambda side: (strides[side], tensor.shape[side]))
    kept, step = [0] * tensor.dim(), 1
    for side in order:
        kept[side], step = step, step * tensor.shape[side]
    return kept


def _copy_(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    target, source = args[:2]
    blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if target.device.type == "cuda" and source.device.type == "cpu":
        hollow = isinstance(source, FakeTensor)
        card.copy_to_card(source, hollow)
        if hollow:
            card.weights.add(storage_id(target))
    elif target.device.type == "cpu" and source.device.type == "cuda":
        card.copy_to_host(source, source.dtype, blocking)
    return target


def _detach(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What torch would find too, and so often called that it shows."""
    return card.fake(meta_of(args[0]), args[0].fake_device)


def _as_strided(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """As :func:`_detach`; of many places in one piece of memory, so that hardly two calls are alike."""
    tensor, shape, strides, *offset = args
    start = offset[0] if offset and offset[0] is not None else tensor.storage_offset()
    return card.view(tensor, shape, strides, start, tensor.dtype)


def _value(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensor = args[0]
    if tensor.device.type == "cpu":
        raise HollowTensorRead("a weight without data was read")
    card.wait("value")
    return True if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


def _nonzero(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    card.wait("nonzero")
    return card.empty((min(1, args[0].numel()), args[0].dim()), torch.int64, args[0].fake_device)


def _index(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """By a mask: one row, if there is any."""
    tensor, indices = args
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if not masks:
        return NotImplemented
    card.wait("mask")
    sides = masks[0].dim()
    return card.empty((min(1, masks[0].numel()), *tensor.shape[sides:]), tensor.dtype, tensor.device)


def _index_put_(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """In place. A number is filled in by a kernel, for anything else the host has to know how many places there are."""
    masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if masks and args[2].dim() and args[0].device.type == "cuda":
        card.wait("mask")
    return args[0]


def _fill(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Random numbers in place: torch's own stand-in for these needs a build with CUDA."""
    return args[0]


def _nms(card: FakeCard, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    card.wait("nms")
    return card.empty((min(1, len(args[0])),), torch.int64, args[0].fake_device)


SPECIAL: Mapping[Any, Callable[[FakeCard, Any, Sequence[Any], Mapping[str, Any]], Any]] = {
    aten._to_copy.default: _to_copy,
    aten.detach.default: _detach,
    aten.as_strided.default: _as_strided,
    aten.copy_.default: _copy_,
    aten._local_scalar_dense.default: _value,
    aten.nonzero.default: _nonzero,
    aten.index.Tensor: _index,
    aten.index_put_.default: _index_put_,
    aten.uniform_.default: _fill,
    aten.normal_.default: _fill,
}
BY_NAME = {"torchvision::nms": _nms}
"""Operators that may be defined later."""
