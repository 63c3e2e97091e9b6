"""Tensors of a model that move together, and the slots through which groups of them are streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from backend.stream import PackedTensors, Slot, Transfers, packed, tensor_bytes


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of a module without those of its children."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Weights must be ordinary tensors, also when they are loaded during an inference."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class TensorGroup:
    """The tensors that some modules hold themselves (not their children), loaded and unloaded together.

    Those that move often are packed into pinned memory, as far as there is any, in place of the memory they were in.
    """

    def __init__(self, modules: Iterable[nn.Module], transfers: Transfers, moves_often: bool = True) -> None:
        self._tensors = list({id(tensor): tensor for module in modules for tensor in own_tensors(module)}.values())
        self._transfers = transfers
        self._host: PackedTensors | None
        self.is_loaded = False
        self._pack(moves_often)

    def _pack(self, moves_often: bool) -> None:
        with ordinary_tensors():
            host = packed((tensor.data for tensor in self._tensors), self._transfers if moves_often else None)
        self._host = host
        self._point_to(host.tensors)

    @property
    def bytes(self) -> int:
        return sum(map(tensor_bytes, self._tensors))

    @property
    def size(self) -> int:
        """Bytes of memory that it takes on the device; 0 when it stays there for good."""
        return self._host.size if self._host else 0

    def load(self, slot: Slot | None = None) -> bool:
        """Uploads the tensors into the slot, or memory of their own, unless they are on the device; returns whether it
        did."""
        if self.is_loaded or not self._host:
            return False
        with ordinary_tensors():
            self._point_to(self._transfers.upload(self._host, slot))
        self.is_loaded = True
        return True

    def unload(self) -> None:
        """Drops the copies on the device; nothing is copied back."""
        if self._host:
            self._point_to(self._host.tensors)
            self.is_loaded = False

    def drop_host_copy(self) -> None:
        """From now on the loaded tensors are on the device only; :meth:`unload` leaves them there."""
        if self._host and self.is_loaded:
            self._unpin(self._host)
            self._host = None

    def detach(self) -> None:
        """Brings the tensors back to the host for good, in memory that is not pinned."""
        if self._host:
            self.unload()
            self._unpin(self._host)
        else:
            with ordinary_tensors():
                self._point_to([self._transfers.download(tensor.data) for tensor in self._tensors])

    def _unpin(self, host: PackedTensors) -> None:
        if host.slab is not None:
            self._transfers.unpin(host.slab)

    def _point_to(self, memory: Sequence[torch.Tensor]) -> None:
        for tensor, data in zip(self._tensors, memory, strict=True):
            tensor.data = data


class SlotCycle:
    """Streams groups through fixed slots on the device, in the order in which they are used.

    With two slots the next group is uploaded while one computes; after the last comes the first, for the next forward.
    What a slot holds stays there until another group needs it, so a forward that ends early uploads nothing in vain.
    """

    def __init__(self, groups: Sequence[TensorGroup], transfers: Transfers, slots: int) -> None:
        self._groups, self._transfers = groups, transfers
        self._count = min(slots, len(groups))
        self._size = max((group.size for group in groups), default=0)
        self._slots: list[Slot] = []
        self._held: list[int | None] = []
        """By slot the index of the group in it."""
        self._current = 0
        """The slot of the group that computes, or did last."""

    @property
    def pending_bytes(self) -> int:
        """How much memory :meth:`open` would allocate now."""
        return 0 if self._slots else self._count * self._size

    def open(self) -> bool:
        """Allocates the slots and begins to upload the first group; returns whether it had to."""
        if self._slots or not self._count:
            return False
        with ordinary_tensors():
            self._slots = [self._transfers.slot(self._size) for _ in range(self._count)]
        self._held, self._current = [None] * self._count, 0
        self._fill(0, 0)
        return True

    def close(self) -> None:
        """Gives the slots back."""
        for slot, held in zip(self._slots, self._held, strict=True):
            if held is not None:
                slot.wait()  # for an upload that nobody has waited for
                self._groups[held].unload()
        self._slots, self._held = [], []

    def begin(self, index: int) -> None:
        """Makes a group ready to compute, and uploads the next one meanwhile."""
        if index in self._held:
            self._current = self._held.index(index)
        else:
            self._fill(self._current, index)
        self._slots[self._current].wait()
        following = (index + 1) % len(self._groups)
        if self._count > 1 and following not in self._held:
            self._fill(1 - self._current, following)

    def end(self) -> None:
        """The computation of the group that was begun has been started."""
        self._slots[self._current].release()

    def _fill(self, slot: int, index: int) -> None:
        held = self._held[slot]
        if held is not None:
            self._groups[held].unload()
        self._held[slot] = None
        self._groups[index].load(self._slots[slot])
        self._held[slot] = index
