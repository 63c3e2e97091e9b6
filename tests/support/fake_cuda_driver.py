"""What ``torch.cuda`` says of a card that is not there: its properties, its memory, streams, events, pinned memory."""

from __future__ import annotations

import inspect
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.cuda._utils import _get_device_index

from backend.core.units import GIB
from backend.devices import cuda_checks
from backend.planning.gpu_specs import REPORTED_SHARE

if TYPE_CHECKING:
    from support.fake_cuda import FakeCard

BUILT_FOR = (13, 0)
"""The version of CUDA."""
ALREADY_REGISTERED = 712
"""``cudaErrorHostMemoryAlreadyRegistered``."""
NEED_INDEX = frozenset(("set_device", "set_per_process_memory_fraction", "get_per_process_memory_fraction"))
"""The functions that refuse ``torch.device("cuda")``, which does not say which card."""


class FakeStream:
    """A queue of work on the card. ``clock`` has of every stream how much of its work is known to be done before what
    comes next here."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device, self.priority = torch.device("cuda", 0), priority
        self.clock: dict[FakeStream, int] = {self: 0}

    def wait_stream(self, other: FakeStream) -> None:
        self._wait(other.clock)

    def wait_event(self, event: FakeEvent) -> None:
        self._wait(event.clock)

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        event = event or FakeEvent()
        event.record(self)
        return event

    def _wait(self, clock: dict[FakeStream, int]) -> None:
        for stream, time in clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), time)

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        torch.cuda.synchronize()


class FakeEvent:
    """A mark in a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self.clock: dict[FakeStream, int] = {}

    def record(self, stream: FakeStream | None = None) -> None:
        self.clock = dict((stream or torch.cuda.current_stream()).clock)  # type: ignore[attr-defined]

    def wait(self, stream: FakeStream | None = None) -> None:
        (stream or torch.cuda.current_stream()).wait_event(self)  # type: ignore[arg-type]

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1.0


class FakeDriver:
    """The card as the driver sees it.

    ``cuda`` is the CUDA version that the driver supports; torch is built for 13.0.
    ``register_error`` is what pinning memory fails with (0: it works, as far as no page is pinned twice). After an
    error the next thing that runs on the card raises it, once, as CUDA does.
    """

    def __init__(
        self,
        card: FakeCard,
        gib: float,
        capability: tuple[int, int],
        held_bytes: int,
        context_bytes: int,
        host_gib: float,
        cuda: tuple[int, int],
    ) -> None:
        self.card, self.capability, self.host_bytes = card, capability, int(host_gib * 2**30)
        self.total_bytes, self.held_bytes = int(REPORTED_SHARE * gib * 2**30), held_bytes
        self.context_bytes, self.fraction = context_bytes, 1.0
        self.name = f"fake card of {gib:g} GB"
        self.cuda = cuda
        self.default_stream = self.stream = FakeStream()
        self.peak_bytes = 0
        """As torch has it, whose statistics the product resets."""
        self.register_error = self.pending_error = 0
        self.registered: dict[int, int] = {}
        self.pinned_peak = 0

    def free_bytes(self) -> int:
        return self.total_bytes - self.held_bytes - self.context_bytes - self.card.allocated_bytes

    def require(self, size: int) -> None:
        """Raises what CUDA raises where so many bytes do not fit, and a pending error."""
        self.launch()
        allowed = int(self.total_bytes * self.fraction) - self.card.allocated_bytes
        free = max(0, min(self.free_bytes(), allowed))
        if size > free:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of "
                f"{self.total_bytes} bytes of which {free} bytes are free."
            )

    def launch(self) -> None:
        """Something begins to run on the card."""
        if self.pending_error:
            error, self.pending_error = self.pending_error, 0
            raise RuntimeError(f"CUDA error: error {error} of an earlier call was never looked at")

    # pinned memory

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        """Pins whole pages. A page that is pinned already is an error."""
        first, last = address // mmap.PAGESIZE, (address + size - 1) // mmap.PAGESIZE
        taken = any(
            first <= (other + length - 1) // mmap.PAGESIZE and other // mmap.PAGESIZE <= last
            for other, length in self.registered.items()
        )
        error = self.register_error or (ALREADY_REGISTERED if taken else 0)
        if error:
            self.pending_error = error
            return error
        self.registered[address] = size
        self.pinned_peak = max(self.pinned_peak, sum(self.registered.values()))
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        if self.registered.pop(address, None) is None:
            self.pending_error = 713
            return 713
        return 0

    def cudaGetErrorString(self, error: int) -> str:  # noqa: N802
        return f"error {int(error)}"

    def is_registered(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + length for start, length in self.registered.items())

    @staticmethod
    def record_stream(tensor: torch.Tensor, stream: FakeStream) -> None:
        """Its memory is not used again before the stream is done with it."""


@contextmanager
def installed_driver(driver: FakeDriver) -> Iterator[None]:
    """``torch.cuda`` is this card inside, and what it was before afterwards."""
    with (
        patch.multiple(torch.cuda, **_as_strict({**_properties(driver), **_memory(driver), **_streams(driver)})),
        patch.object(torch.version, "cuda", ".".join(map(str, BUILT_FOR))),
        patch.object(cuda_checks, "driver_cuda_version", lambda: driver.cuda),
        patch.object(torch.accelerator, "empty_host_cache", lambda: None),
        patch.object(torch.Tensor, "record_stream", driver.record_stream),
        host_of(driver.host_bytes),
    ):
        yield


def _as_strict(functions: Mapping[str, Any]) -> dict[str, Any]:
    """The functions by name, which now check a ``device`` as torch does: one of another type is refused, and by some
    one without an index."""
    return {
        name: _checks_device(one, name not in NEED_INDEX)
        if inspect.isfunction(one) and "device" in inspect.signature(one).parameters
        else one
        for name, one in functions.items()
    }


def _checks_device(run: Callable[..., Any], optional: bool) -> Callable[..., Any]:
    signature = inspect.signature(run)

    @wraps(run)
    def checks(*args: Any, **options: Any) -> Any:
        device = signature.bind(*args, **options).arguments.get("device")
        if device is not None:
            _get_device_index(device, optional)
        return run(*args, **options)

    return checks


def _properties(driver: FakeDriver) -> dict[str, Any]:
    properties = SimpleNamespace(
        name=driver.name,
        total_memory=driver.total_bytes,
        major=driver.capability[0],
        minor=driver.capability[1],
        multi_processor_count=128,
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: driver.name,
        "get_device_capability": lambda device=None: driver.capability,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: driver.capability >= (8, 0),
    }


def _memory(driver: FakeDriver) -> dict[str, Any]:
    card = driver.card

    def reset_peak(device: Any = None) -> None:
        driver.peak_bytes = card.allocated_bytes

    return {
        "mem_get_info": lambda device=None: (driver.free_bytes(), driver.total_bytes),
        "memory_allocated": lambda device=None: card.allocated_bytes,
        "memory_reserved": lambda device=None: card.allocated_bytes,
        "max_memory_allocated": lambda device=None: driver.peak_bytes,
        "max_memory_reserved": lambda device=None: driver.peak_bytes,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": lambda share, device=None: setattr(driver, "fraction", share),
        "get_per_process_memory_fraction": lambda device=None: driver.fraction,
        "cudart": lambda: driver,
    }


def _streams(driver: FakeDriver) -> dict[str, Any]:
    @contextmanager
    def stream(stream: FakeStream | None) -> Iterator[None]:
        before, driver.stream = driver.stream, stream or driver.stream
        try:
            yield
        finally:
            driver.stream = before

    return {
        "Stream": FakeStream,
        "Event": FakeEvent,
        "stream": stream,
        "current_stream": lambda device=None: driver.stream,
        "default_stream": lambda device=None: driver.default_stream,
        "synchronize": lambda device=None: driver.card.wait("synchronize"),
    }


@contextmanager
def host_of(size: int) -> Iterator[None]:
    """Inside, the machine has so many bytes of memory, 2 GiB of them in use, and the control group has no limit."""
    read_text, exists = Path.read_text, Path.exists

    def limits(path: Path) -> bool:
        return path.is_relative_to("/sys/fs/cgroup") and path.name.startswith("memory")

    def read(path: Path, *args: Any, **options: Any) -> str:
        if limits(path):
            raise FileNotFoundError(path)
        text = read_text(path, *args, **options)
        if path == Path("/proc/meminfo"):
            for name, amount in (("MemTotal", size), ("MemAvailable", size - 2 * GIB), ("MemFree", size - 2 * GIB)):
                text = re.sub(rf"(?m)^{name}:.*$", f"{name}: {amount // 1024} kB", text)
        return text

    with (
        patch.object(Path, "read_text", read),
        patch.object(Path, "exists", lambda path, **options: not limits(path) and exists(path, **options)),
    ):
        yield
