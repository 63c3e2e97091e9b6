"""How weights are uploaded to a device, and what of them stays on the host.

Weights are read-only, so a model that leaves the device is dropped and not copied back: its copy on the host is still
there. On CUDA uploads run on a stream of their own, from memory that is registered with the driver (pinned) as far as
the budget goes. The memory of the weights is registered where it is, because PyTorch's pinned allocator would copy it
and round its size up to a power of two.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch

logger = logging.getLogger(__name__)


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Transfers(Protocol):
    """Copies between the host and a device.

    ``bytes_uploaded`` counts all bytes of weights that were uploaded; ``has_device_memory`` says whether the device has
    memory of its own.
    """

    bytes_uploaded: int
    has_device_memory: bool

    def pin(self, tensor: torch.Tensor) -> None:
        """Called once for every host tensor that will be uploaded repeatedly; pins it where that makes uploads
        faster."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device, which may be incomplete until :meth:`synchronize`. Raises
        ``torch.OutOfMemoryError``."""

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host, for weights that have none there and leave the device."""

    def synchronize(self) -> None:
        """Makes the computation that follows wait for all uploads before it."""

    def free_bytes(self) -> int:
        """How many bytes can still be allocated on the device."""


class HostTransfers:
    """For a CPU: the host's memory is the device's, and nothing is copied."""

    has_device_memory = False

    def __init__(self) -> None:
        self.bytes_uploaded = 0

    def pin(self, tensor: torch.Tensor) -> None:
        """Nothing is copied, so nothing is pinned."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes_uploaded += tensor_bytes(tensor)
        return tensor

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def synchronize(self) -> None:
        """Nothing is copied, so there is nothing to wait for."""

    def free_bytes(self) -> int:
        return 0


class CudaTransfers:
    """Uploads on a CUDA stream of their own, in parallel to the computation. At most ``pin_bytes`` of host memory are
    pinned."""

    has_device_memory = True

    def __init__(self, device: torch.device, pin_bytes: int) -> None:
        self.bytes_uploaded = 0
        self._device = device
        self._pin_left = pin_bytes
        self._stream = torch.cuda.Stream(device)

    def pin(self, tensor: torch.Tensor) -> None:
        size = tensor_bytes(tensor)
        if size > self._pin_left or tensor.is_pinned():
            return
        # not every driver can register memory that is mapped from a file; uploads from there are only slower
        if int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0)) == 0:
            self._pin_left -= size
        else:
            logger.debug("%d bytes could not be pinned", size)

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            copy = tensor.to(self._device, non_blocking=True)
        # the allocator must not reuse the memory on the transfer stream while the computation still reads it
        copy.record_stream(torch.cuda.current_stream(self._device))
        self.bytes_uploaded += tensor_bytes(tensor)
        return copy

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu()

    def synchronize(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def free_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        reserved, allocated = torch.cuda.memory_reserved(self._device), torch.cuda.memory_allocated(self._device)
        allowed = int(
            total * torch.cuda.get_per_process_memory_fraction(self._device)
        )  # all of it, unless a smaller card is emulated
        return min(free + reserved, allowed) - allocated
