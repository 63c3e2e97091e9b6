"""Host memory that stands in for a card's: a budget in bytes, a bandwidth, real copies, and the same error when it is
full.

Every tensor that is made while the device computes counts, from the moment it is made until its last user lets go of
it. So every placement can be run for real, with its true peak, on a machine without a GPU: ``scripts/predict
--emulate-vram 48MB``. What single operations need inside themselves is not seen.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backend.stream import tensor_bytes


class EmulatedDevice(TorchDispatchMode):
    """A context: what is made inside it is on the device. Also the :class:`~backend.stream.Transfers` that weights take
    to it.

    ``total_bytes`` is the budget; ``copy_bandwidth`` in bytes a second, or 0 for copies as fast as they go.
    """

    has_device_memory = True

    def __init__(self, total_bytes: int, copy_bandwidth: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total_bytes = total_bytes
        self.copy_bandwidth = copy_bandwidth
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self.bytes_uploaded = 0
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
        given = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, torch.Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts the tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if size == 0 or tensor.is_meta or key in self._live:
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
        """Host memory is as near as it gets."""

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
