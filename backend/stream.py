"""How weights are uploaded to a device, and what of them stays on the host.

Weights are read-only, so a model that leaves the device is dropped and not copied back: its copy on the host is still
there. Tensors that move together are packed: one piece of pinned memory on the host, one copy, one piece of memory on
the device. On CUDA copies run on a stream of their own; what is streamed goes through slots, fixed pieces of device
memory that events guard.
"""

from __future__ import annotations

import logging
import mmap
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes at which tensors begin in packed memory, as in memory that torch allocates itself."""


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def page_aligned(size: int) -> torch.Tensor:
    """Host memory in whole pages that nothing else lies in, for ``size`` bytes."""
    return torch.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), dtype=torch.uint8)


@dataclass(frozen=True)
class PackedTensors:
    """Tensors on the host that are uploaded together.

    ``offsets`` says at which byte each begins in one piece of ``size`` bytes, ``strides`` how it lies there. ``slab``
    is pinned memory that holds them like that, if there is any; they are views of it then.
    """

    tensors: tuple[torch.Tensor, ...]
    offsets: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    size: int
    slab: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of the tensors alone, without the gaps between them."""
        return sum(map(tensor_bytes, self.tensors))

    def views(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """Tensors of the same shapes, types and order of dimensions in ``memory``, bytes on any device, a multiple of
        :data:`ALIGNMENT` of them."""
        # every operator costs the host time while the device may have nothing to do, so it is one for each tensor
        typed = {dtype: memory.view(dtype) for dtype in {tensor.dtype for tensor in self.tensors}}
        return [
            typed[tensor.dtype].as_strided(tensor.shape, strides, offset // tensor.element_size())
            for tensor, offset, strides in zip(self.tensors, self.offsets, self.strides, strict=True)
        ]

    def copy_to(self, memory: torch.Tensor) -> None:
        """Copies all tensors into ``memory``: at once from a slab, else one by one."""
        if self.slab is not None:
            memory[: self.size].copy_(self.slab[: self.size], non_blocking=True)
            return
        for tensor, view in zip(self.tensors, self.views(memory), strict=True):
            view.copy_(tensor, non_blocking=True)


def packed(tensors: Iterable[torch.Tensor], pinned: Transfers | None = None) -> PackedTensors:
    """The tensors, moved into memory that ``pinned`` pins where it can; their old memory is no longer needed."""
    tensors = tuple(tensors)
    *offsets, size = accumulate((-(-tensor_bytes(one) // ALIGNMENT) * ALIGNMENT for one in tensors), initial=0)
    strides = tuple(torch.empty_like(one, device="meta").stride() for one in tensors)
    loose = PackedTensors(tensors, tuple(offsets), strides, size)
    slab = pinned.pin(size) if pinned and size else None
    if slab is None:
        return loose
    loose.copy_to(slab)
    return replace(loose, tensors=tuple(loose.views(slab)), slab=slab)


class Slot:
    """Device memory that one group of tensors uses after the other. Here for copies that are done when ``upload``
    returns."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory

    def wait(self) -> None:
        """Makes the computation that follows wait for the last upload into the slot."""

    def release(self) -> None:
        """Makes uploads that follow wait for the computation so far."""


class Transfers(Protocol):
    """Copies between the host and a device.

    ``bytes_uploaded`` counts all bytes of weights that were uploaded; ``has_device_memory`` says whether the device has
    memory of its own.
    """

    bytes_uploaded: int
    has_device_memory: bool

    def pin(self, size: int) -> torch.Tensor | None:
        """At least so many bytes of pinned host memory; None where there is none to be had, or no use for it."""

    def unpin(self, slab: torch.Tensor) -> None:
        """What :meth:`pin` returned becomes ordinary memory."""

    def slot(self, size: int) -> Slot:
        """A slot of so many bytes. Raises ``torch.OutOfMemoryError``."""

    def upload(self, tensors: PackedTensors, slot: Slot | None = None) -> list[torch.Tensor]:
        """Copies in a slot, or in memory of their own. They may be incomplete until :meth:`Slot.wait` or
        :meth:`synchronize`. Raises ``torch.OutOfMemoryError``."""

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host, for weights that have none there and leave the device."""

    def on_host(self) -> AbstractContextManager[None]:
        """Inside, tensors that are made on the CPU take no memory of the device."""

    def synchronize(self) -> None:
        """Makes the computation that follows wait for all uploads before it."""

    def free_bytes(self) -> int:
        """How many bytes can still be allocated on the device."""


class HostTransfers:
    """For a CPU: the host's memory is the device's, and nothing is copied."""

    has_device_memory = False

    def __init__(self) -> None:
        self.bytes_uploaded = 0

    def pin(self, size: int) -> None:
        """Nothing is copied, so nothing is pinned."""

    def unpin(self, slab: torch.Tensor) -> None:
        """Nothing is pinned."""

    def slot(self, size: int) -> Slot:
        return Slot(torch.empty(0))

    def upload(self, tensors: PackedTensors, slot: Slot | None = None) -> list[torch.Tensor]:
        self.bytes_uploaded += tensors.bytes
        return list(tensors.tensors)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def on_host(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing is copied, so there is nothing to wait for."""

    def free_bytes(self) -> int:
        return 0


class CudaSlot(Slot):
    """A slot whose uploads run on the stream ``copies`` and whose users compute on the current stream."""

    def __init__(self, memory: torch.Tensor, copies: torch.cuda.Stream) -> None:
        super().__init__(memory)
        self._copies = copies
        self._uploaded, self._computed = torch.cuda.Event(), torch.cuda.Event()

    def upload(self, tensors: PackedTensors) -> None:
        self._copies.wait_event(self._computed)
        with torch.cuda.stream(self._copies):
            tensors.copy_to(self.memory)
        self._uploaded.record(self._copies)

    def wait(self) -> None:
        torch.cuda.current_stream(self.memory.device).wait_event(self._uploaded)

    def release(self) -> None:
        self._computed.record(torch.cuda.current_stream(self.memory.device))


class CudaTransfers:
    """Uploads on a CUDA stream of their own, in parallel to the computation. At most ``pin_bytes`` of host memory are
    pinned, all of it until :meth:`unpin` or the end of the process.

    Whole pages are registered with the driver, because PyTorch's pinned allocator rounds sizes up to a power of two.
    """

    has_device_memory = True

    def __init__(self, device: torch.device, pin_bytes: int) -> None:
        self.bytes_uploaded = 0
        self._device = device
        self._pin_left = pin_bytes
        self._stream = torch.cuda.Stream(device)
        self._driver = torch.cuda.cudart()
        self._slabs: dict[int, torch.Tensor] = {}
        """By address; registered memory must not be freed."""
        weakref.finalize(self, unregister, self._driver, self._slabs)  # also at the end of the process

    def pin(self, size: int) -> torch.Tensor | None:
        slab = page_aligned(size)
        if slab.nbytes > self._pin_left:
            return None
        if (code := self._register(slab)) and self._register(slab):  # the first may have reported an older error
            self._pin_left = 0
            logger.warning(
                "host memory cannot be pinned (CUDA error %d), so weights are uploaded more slowly; 'ulimit -l' or "
                "the container may limit it",
                code,
            )
            return None
        self._slabs[slab.data_ptr()] = slab
        self._pin_left -= slab.nbytes
        return slab

    def _register(self, slab: torch.Tensor) -> int:
        """Registers memory with the driver; returns CUDA's error code, which is no longer pending then."""
        code = int(self._driver.cudaHostRegister(slab.data_ptr(), slab.nbytes, 0))
        if code:
            try:
                self._touch_device()
            except RuntimeError:  # torch clears an error when it reports it; one that stays is of the device itself
                self._touch_device()
        return code

    def _touch_device(self) -> None:
        """Runs a kernel, with which torch reports an error that is pending."""
        torch.zeros(1, device=self._device)

    def unpin(self, slab: torch.Tensor) -> None:
        self._stream.synchronize()
        address = slab.data_ptr()
        unregister(self._driver, {address: self._slabs.pop(address)})
        self._pin_left += slab.nbytes

    def slot(self, size: int) -> Slot:
        return CudaSlot(self._allocate(size), self._stream)

    def upload(self, tensors: PackedTensors, slot: Slot | None = None) -> list[torch.Tensor]:
        if isinstance(slot, CudaSlot):
            memory = slot.memory
            slot.upload(tensors)
        else:
            memory = self._allocate(tensors.size)
            with torch.cuda.stream(self._stream):
                tensors.copy_to(memory)
        self.bytes_uploaded += tensors.bytes
        return tensors.views(memory)

    def _allocate(self, size: int) -> torch.Tensor:
        """Memory that both streams use: an upload need not wait for the computation that runs, and whoever gets the
        memory afterwards waits for both."""
        with torch.cuda.stream(self._stream):
            memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        memory.record_stream(torch.cuda.current_stream(self._device))
        return memory

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()

    def on_host(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def free_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        reserved, allocated = torch.cuda.memory_reserved(self._device), torch.cuda.memory_allocated(self._device)
        allowed = int(
            total * torch.cuda.get_per_process_memory_fraction(self._device)
        )  # all of it, unless a smaller card is emulated
        return min(free + reserved, allowed) - allocated


def unregister(driver: Any, slabs: dict[int, torch.Tensor]) -> None:
    """Ends the hold on memory of CUDA's runtime library ``driver``, and ours."""
    for address in list(slabs):
        driver.cudaHostUnregister(address)
        del slabs[address]
