"""How weights come to a device, and what is kept of them on the host.

Weights are read-only, so a model that leaves the device is dropped and never copied back: its host copy is still there.
On CUDA the copies run on a stream of their own, from memory that is registered with the driver (pinned) as far as the
budget goes; registering memory that is there already costs nothing twice, where PyTorch's pinned allocator rounds sizes
up to the double.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch

logger = logging.getLogger(__name__)


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Transfers(Protocol):
    """The way to a device.

    ``bytes_uploaded`` counts every weight byte that went there; ``has_device_memory`` says whether the device has
    memory of its own.
    """

    bytes_uploaded: int
    has_device_memory: bool

    def pin(self, tensor: torch.Tensor) -> None:
        """Told once of every host tensor that will be uploaded again and again; it may be pinned here."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device. It may still be under way until :meth:`synchronize`. Raises
        ``torch.OutOfMemoryError``."""

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host, of weights that have none there and are to leave the device."""

    def synchronize(self) -> None:
        """From here on everything that was uploaded may be computed with."""

    def free_bytes(self) -> int:
        """Bytes that the device could still take."""


class HostTransfers:
    """For a CPU: the host's memory is the device's memory, and nothing is copied."""

    has_device_memory = False

    def __init__(self) -> None:
        self.bytes_uploaded = 0

    def pin(self, tensor: torch.Tensor) -> None:
        """There is nothing to pin for."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes_uploaded += tensor_bytes(tensor)
        return tensor

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def free_bytes(self) -> int:
        return 0


class CudaTransfers:
    """Copies on a CUDA stream of their own, beside the computation. ``pin_bytes`` is the most host memory that is
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
        # memory mapped from a file cannot be registered everywhere; such a tensor is then copied unpinned, only slower
        if int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0)) == 0:
            self._pin_left -= size
        else:
            logger.debug("%d bytes could not be pinned", size)

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._stream):
            copy = tensor.to(self._device, non_blocking=True)
        # the allocator must not hand the memory to the transfer stream again while the computation still reads it
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
