"""Where a model is kept beside a device: resident, model offload, partial, block offload or layer offload.

The names and their costs are those of the memory plan (``backend/memory_management.py``). A placement never changes
what a model computes, only where its bytes wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from backend.offload.tensor_groups import SlotCycle, TensorGroup, own_tensors
from backend.planning.checkpoint_sizes import BLOCK_LISTS, UNET_BLOCKS
from backend.planning.costs import Kind, streamed_blocks
from backend.stream import Transfers, tensor_bytes


class PlacedModel(ABC):
    """A model in one placement. ``borrowers`` counts the open loans; the cache keeps it."""

    is_resident = False
    is_streamed = False
    """Whether parts of it come and go during a forward, so that only one thread at a time may use it."""

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        self.module, self.transfers, self.borrowers = module, transfers, 0

    @property
    def bytes(self) -> int:
        """The size of the whole model, wherever it is."""
        return sum(tensor_bytes(tensor) for tensor in all_tensors(self.module))

    @property
    def standing_bytes(self) -> int:
        """How many bytes stay on the device between loans, without a copy on the host."""
        return 0

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether it can compute now."""

    @property
    @abstractmethod
    def pending_bytes(self) -> int:
        """How many bytes :meth:`load` would allocate now."""

    def load_standing(self) -> None:  # noqa: B027 - most models have nothing that stays
        """Uploads what stays on the device between loans."""

    @abstractmethod
    def load(self) -> bool:
        """Makes it ready to compute; returns whether it was not. After an error it can be called again."""

    @abstractmethod
    def unload(self) -> None:
        """Drops from the device what may leave it."""

    @abstractmethod
    def detach(self) -> nn.Module:
        """Ends this placement: returns the module, complete and on the host, so that it can be placed anew."""


class OffloadedModel(PlacedModel):
    """Model offload: uploaded when it is borrowed, dropped when other models need the room."""

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        super().__init__(module, transfers)
        self._groups = tensor_groups(module, transfers, moves_often=True)

    @property
    def is_loaded(self) -> bool:
        return all(group.is_loaded for group in self._groups)

    @property
    def pending_bytes(self) -> int:
        return sum(group.size for group in self._groups if not group.is_loaded)

    def load(self) -> bool:
        try:
            loaded = [group.load() for group in self._groups]
        except BaseException:
            self.unload()
            raise
        return any(loaded)

    def unload(self) -> None:
        for group in self._groups:
            group.unload()

    def detach(self) -> nn.Module:
        for group in self._groups:
            group.detach()
        return self.module


class ResidentModel(PlacedModel):
    """Uploaded once; it stays on the device and leaves no copy on the host."""

    is_resident = True

    def __init__(self, module: nn.Module, transfers: Transfers) -> None:
        super().__init__(module, transfers)
        self._standing = StandingGroups(tensor_groups(module, transfers, moves_often=False))

    @property
    def standing_bytes(self) -> int:
        return self._standing.bytes

    @property
    def is_loaded(self) -> bool:
        return not self._standing.pending_bytes

    @property
    def pending_bytes(self) -> int:
        return self._standing.pending_bytes

    def load_standing(self) -> None:
        self.load()

    def load(self) -> bool:
        return self._standing.load()

    def unload(self) -> None:
        """A resident model stays."""

    def detach(self) -> nn.Module:
        self._standing.detach()
        return self.module


class StandingGroups:
    """Groups that are uploaded once and leave no copy on the host."""

    def __init__(self, groups: Sequence[TensorGroup]) -> None:
        self._groups = groups

    @property
    def bytes(self) -> int:
        """Of what is on the device only."""
        return sum(group.bytes for group in self._groups if not group.size)

    @property
    def pending_bytes(self) -> int:
        return sum(group.size for group in self._groups)

    def load(self) -> bool:
        """As of every placement; after an error all of it is on the host again."""
        try:
            loaded = [group.load() for group in self._groups]
        except BaseException:
            for group in self._groups:
                group.unload()
            raise
        for group in self._groups:
            group.drop_host_copy()
        return any(loaded)

    def detach(self) -> None:
        for group in self._groups:
            group.detach()


class StreamedForward:
    """The forward of a part that is streamed. Not a hook of the module: those run also where diffusers' first-block
    cache skips the forward, and a compiled forward need not know."""

    def __init__(self, cycle: SlotCycle, index: int, forward: Callable[..., Any]) -> None:
        update_wrapper(self, forward)
        self.cycle, self.index, self.forward = cycle, index, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.cycle.begin(self.index)
        try:
            return self.forward(*args, **kwargs)
        finally:
            self.cycle.end()


@contextmanager
def computing_with(module: nn.Module, changed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Inside, the module computes with the forward that is made of its own. The weights of a module that is streamed
    are on the device meanwhile."""
    own = vars(module).get("forward")
    if isinstance(own, StreamedForward):
        plain = own.forward
        own.forward = changed(plain)
        try:
            yield
        finally:
            own.forward = plain
        return
    module.forward = changed(module.forward)
    try:
        yield
    finally:
        del module.forward
        if own:
            module.forward = own


class StreamedModel(PlacedModel):
    """Its parts pass through slots on the device: uploaded when their forward begins or, with two slots, while the part
    before computes.

    ``parts`` has for each part the modules whose tensors it needs, in the order in which the parts run; parts with the
    same tensors share them. All other tensors are on the device while the model is borrowed, or always if they stand.
    """

    is_streamed = True

    def __init__(
        self,
        module: nn.Module,
        transfers: Transfers,
        parts: Mapping[nn.Module, Collection[nn.Module]],
        slots: int,
        others_stand: bool = False,
    ) -> None:
        super().__init__(module, transfers)
        inside = {id(inner) for modules in parts.values() for inner in modules}
        others = tensor_groups(module, transfers, moves_often=not others_stand, without=inside)
        self._others: list[TensorGroup] = [] if others_stand else others
        self._standing = StandingGroups(others if others_stand else [])
        sharing: dict[tuple[int, ...], list[nn.Module]] = {}
        for part, modules in parts.items():
            tensors = tuple(id(tensor) for one in modules for tensor in own_tensors(one))
            sharing.setdefault(tensors, []).append(part)
        self._groups = [TensorGroup(parts[first], transfers) for first, *_ in sharing.values()]
        self._cycle = SlotCycle(self._groups, transfers, slots)
        self._forwards = [(part, vars(part).get("forward")) for part in parts]
        for index, alike in enumerate(sharing.values()):
            for part in alike:
                part.forward = StreamedForward(self._cycle, index, part.forward)

    @property
    def standing_bytes(self) -> int:
        return self._standing.bytes

    @property
    def is_loaded(self) -> bool:
        return not self.pending_bytes

    @property
    def pending_bytes(self) -> int:
        others = sum(group.size for group in self._others if not group.is_loaded)
        return self._standing.pending_bytes + others + self._cycle.pending_bytes

    def load_standing(self) -> None:
        self._standing.load()

    def load(self) -> bool:
        try:
            loaded = [self._standing.load(), *(group.load() for group in self._others), self._cycle.open()]
        except BaseException:
            self.unload()
            raise
        return any(loaded)

    def unload(self) -> None:
        self._cycle.close()
        for group in self._others:
            group.unload()

    def detach(self) -> nn.Module:
        self.unload()
        for part, forward in self._forwards:
            del part.forward
            if forward:
                part.forward = forward
        for group in (*self._groups, *self._others):
            group.detach()
        self._standing.detach()
        return self.module


def tensor_groups(
    module: nn.Module, transfers: Transfers, moves_often: bool, without: Collection[int] = ()
) -> list[TensorGroup]:
    """All tensors of a model, but for the modules ``without`` (by ``id``): a group for each block, and one for what
    lies outside of the blocks."""
    blocks = [[part for part in block.modules() if id(part) not in without] for block in block_modules(module)]
    inside = {id(part) for block in blocks for part in block}
    outside = [part for part in module.modules() if id(part) not in inside and id(part) not in without]
    return [TensorGroup(parts, transfers, moves_often) for parts in (*blocks, outside) if any(map(own_tensors, parts))]


def partial(module: nn.Module, transfers: Transfers, kept: int) -> PlacedModel:
    """Keeps ``kept`` of the model's blocks on the device and streams those between them."""
    blocks = block_modules(module)
    streamed = [blocks[index] for index in streamed_blocks(len(blocks), kept)]
    return StreamedModel(module, transfers, _with_children(streamed), slots=2, others_stand=True)


def block_offload(module: nn.Module, transfers: Transfers) -> PlacedModel:
    """Streams the model's blocks; while one computes the next is uploaded."""
    return StreamedModel(module, transfers, _with_children(block_modules(module)), slots=2)


def is_compiled(block: nn.Module) -> bool:
    """Whether compiled code has taken the place of a block's own forward."""
    forward = vars(block).get("forward")
    forward = forward.forward if isinstance(forward, StreamedForward) else forward
    return forward is not None and getattr(forward, "__self__", None) is not block


def layer_offload(module: nn.Module, transfers: Transfers) -> PlacedModel:
    """Streams the model's layers one at a time: the least memory, and the slowest. Tensors beside layers, of the module
    that holds them, stay while the model is borrowed."""
    for block in block_modules(module):
        vars(block).pop("forward", None)  # a compiled forward would not call those of its layers
    layers = [part for part in module.modules() if own_tensors(part) and not any(part.children())]
    return StreamedModel(module, transfers, {layer: [layer] for layer in layers}, slots=1)


def _with_children(blocks: Iterable[nn.Module]) -> dict[nn.Module, list[nn.Module]]:
    return {block: list(block.modules()) for block in blocks}


def all_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of a module and its children."""
    return [*module.parameters(), *module.buffers()]


def block_modules(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model (for a UNet the parts of its blocks) in the order in which they run; it may have none."""
    named = dict(module.named_modules())
    blocks = [block for name in BLOCK_LISTS if isinstance(found := named.get(name), nn.ModuleList) for block in found]
    return blocks or [part for name in UNET_BLOCKS if (found := named.get(name)) for part in _unet_parts(found)]


def _unet_parts(blocks: nn.Module) -> Iterator[nn.Module]:
    """Of every block the residual and attention parts in turn, then what resamples."""
    for block in blocks if isinstance(blocks, nn.ModuleList) else [blocks]:
        pairs = zip_longest(*(getattr(block, name, ()) for name in ("resnets", "attentions")))
        yield from (part for pair in pairs for part in pair if part is not None)
        yield from getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ()


def placed_model(module: nn.Module, transfers: Transfers, kind: Kind, kept: int = 0) -> PlacedModel:
    """The model in a placement of that kind; ``kept`` blocks stay if it is partial."""
    if kind != "resident":
        vars(module).pop("forward", None)  # a graph of the whole model knows only the addresses that it was made with
    if kind == "partial":
        return partial(module, transfers, kept)
    places = {
        "resident": ResidentModel,
        "model offload": OffloadedModel,
        "block offload": block_offload,
        "layer offload": layer_offload,
    }
    return places[kind](module, transfers)
