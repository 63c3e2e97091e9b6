"""A device emulated in host memory: a budget in bytes, a bandwidth, real copies, and CUDA's error when it is full.

Every tensor counts that is made while the device computes, from then until its memory is freed. So every placement can
be run with its true peak on a machine without a GPU: ``scripts/predict --emulate-vram 48MB``. Memory that an operation
allocates and frees inside itself is not counted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backend.compat import storage_id, tensors_in
from backend.stream import tensor_bytes


class EmulatedDevice(TorchDispatchMode):
    """A context manager: tensors that are made inside of it are on the device. Also the
    :class:`~backend.stream.Transfers` to it.

    ``total_bytes`` is the budget; ``copy_bandwidth`` is in bytes per second, 0 for unlimited.
    """

    has_device_memory = True

    def __init__(self, total_bytes: int, copy_bandwidth: float = 0.0, *, counts_meta: bool = False) -> None:
        """``counts_meta``: tensors without data count too, to measure a model that is too large to load."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total_bytes = total_bytes
        self.copy_bandwidth = copy_bandwidth
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.bytes_uploaded = 0
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
        # a view, and what is changed in place, is no new memory
        given = {storage_id(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(result):
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

    def pin(self, tensor: torch.Tensor) -> None:
        """Nothing to do: all of it is host memory."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        begin, size = time.perf_counter(), tensor_bytes(tensor)
        copy = self._note(tensor.clone())
        self.bytes_uploaded += size
        if self.copy_bandwidth:
            time.sleep(max(0.0, size / self.copy_bandwidth - (time.perf_counter() - begin)))
        return copy

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        self._counting = False  # what is made here is on the host
        try:
            return tensor.clone()
        finally:
            self._counting = True

    def synchronize(self) -> None:
        """Copies are done when :meth:`upload` returns."""

    def free_bytes(self) -> int:
        return self.total_bytes - self.allocated_bytes
