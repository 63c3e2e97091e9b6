"""A device emulated in host memory: a budget in bytes, a bandwidth, real copies, and CUDA's error when it is full.

Every tensor counts that is made while the device computes, from then until its memory is freed. So every placement can
be run with its true peak on a machine without a GPU: ``scripts/predict --emulate-vram 48MB``. Memory that an operation
allocates and frees inside itself is not counted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backend.compat import storage_id
from backend.stream import PackedTensors, Slot, page_aligned


def tensors_in(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """The tensors among the arguments or results of an operator, which come one by one and in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


class EmulatedSlot(Slot):
    """Uploads run in a thread of ``bus``, beside the computation, as on a card."""

    def __init__(self, memory: torch.Tensor, bus: ThreadPoolExecutor) -> None:
        super().__init__(memory)
        self._bus = bus
        self._upload: Future[None] | None = None

    def upload(self, copy: Callable[[], None]) -> None:
        self._upload = self._bus.submit(copy)

    def wait(self) -> None:
        if self._upload:
            self._upload.result()


class EmulatedDevice(TorchDispatchMode):
    """A context manager: tensors that are made inside of it are on the device. Also the
    :class:`~backend.stream.Transfers` to it.

    ``total_bytes`` is the budget; ``copy_bandwidth`` is in bytes per second, 0 for unlimited. ``pin_bytes`` of host
    memory may be packed into slabs as for a card, only that no driver knows of them.
    """

    has_device_memory = True

    def __init__(
        self, total_bytes: int, copy_bandwidth: float = 0.0, *, pin_bytes: int = 0, counts_meta: bool = False
    ) -> None:
        """``counts_meta``: tensors without data count too, to measure a model that is too large to load."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total_bytes = total_bytes
        self.copy_bandwidth = copy_bandwidth
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.bytes_uploaded = 0
        self.pinned_bytes = 0
        self._pin_bytes = pin_bytes
        self._bus = ThreadPoolExecutor(1, thread_name_prefix="emulated bus")
        self._counts_meta = counts_meta
        self._counting = True
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._counting:
            return result
        made = [tensor for tensor in tensors_in([result]) if storage_id(tensor) not in self._live]
        if made:
            # a view, and what is changed in place, is no new memory
            given = {storage_id(tensor) for tensor in tensors_in((*args, *(kwargs or {}).values()))}
            for tensor in made:
                if storage_id(tensor) not in given:
                    self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts the tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage_id(tensor), storage.nbytes()
        if size == 0 or (tensor.is_meta and not self._counts_meta) or key in self._live:
            return tensor

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._live[key]
            self.allocated_bytes -= size

        self._live[key] = weakref.ref(storage, forget)
        self.allocated_bytes += size
        if self.allocated_bytes > self.total_bytes:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. The emulated device has a total capacity of "
                f"{self.total_bytes} bytes "
                f"of which {max(0, self.total_bytes - self.allocated_bytes + size)} bytes are free."
            )
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        return tensor

    def reset_peak(self) -> None:
        self.peak_bytes = self.allocated_bytes

    def pin(self, size: int) -> torch.Tensor | None:
        slab = page_aligned(size)
        if self.pinned_bytes + slab.nbytes > self._pin_bytes:
            return None
        self.pinned_bytes += slab.nbytes
        return slab

    def unpin(self, slab: torch.Tensor) -> None:
        self.pinned_bytes -= slab.nbytes

    def slot(self, size: int) -> Slot:
        return EmulatedSlot(self._note(torch.empty(size, dtype=torch.uint8)), self._bus)

    def upload(self, tensors: PackedTensors, slot: Slot | None = None) -> list[torch.Tensor]:
        memory = slot.memory if slot else self._note(torch.empty(tensors.size, dtype=torch.uint8))
        if isinstance(slot, EmulatedSlot) and self.copy_bandwidth:
            slot.upload(partial(self._copy, tensors, memory))
        else:
            self._copy(tensors, memory)
        self.bytes_uploaded += tensors.bytes
        return tensors.views(memory)

    def _copy(self, tensors: PackedTensors, memory: torch.Tensor) -> None:
        begin = time.perf_counter()
        with torch.no_grad():  # of this thread
            tensors.copy_to(memory)
        if self.copy_bandwidth:
            time.sleep(max(0.0, tensors.bytes / self.copy_bandwidth - (time.perf_counter() - begin)))

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.on_host():
            return tensor.clone()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        counted, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = counted

    def synchronize(self) -> None:
        """Copies outside of slots are done when :meth:`upload` returns."""

    def free_bytes(self) -> int:
        return self.total_bytes - self.allocated_bytes
