"""The device that computes: what it is and how much memory it has."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from backend.core.errors import SettingsError
from backend.devices.cuda_checks import driver_cuda_version, why_no_cuda

logger = logging.getLogger(__name__)

FAST_BFLOAT16 = (8, 0)
"""CUDA compute capability (Ampere) from which on cards multiply bfloat16 as fast as float16."""

CONTROL_GROUPS = (
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)
"""Of both versions: the files with the limit and with what is used, and what ``memory.stat`` calls pages of files."""


@dataclass(frozen=True)
class Device:
    """``kind`` is "cuda" or "cpu"; bytes are the device's own memory (for a CPU: what this process may use of the
    host's).

    ``dtype`` is what the models that draw compute in, ``upscaler_dtype`` what an upscaler does whose architecture can.
    """

    kind: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None
    dtype: torch.dtype
    upscaler_dtype: torch.dtype = torch.float32

    @property
    def torch_device(self) -> torch.device:
        """With an index on CUDA, because some functions of torch refuse a device without one. It is the first card that
        CUDA_VISIBLE_DEVICES leaves: torch's current one, which nothing here changes."""
        return torch.device(self.kind, 0) if self.kind == "cuda" else torch.device(self.kind)


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Total and available bytes of host memory, the control group's limit included (Linux). Pages of files count as
    available: they are dropped when memory is needed.

    ``root`` is where ``proc`` and ``sys`` are.
    """
    lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit_name, used_name, pages in CONTROL_GROUPS:
        limit, used = (root / "sys/fs/cgroup" / name for name in (limit_name, used_name))
        if limit.exists() and used.exists() and limit.read_text().strip() != "max":
            statistics = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
            ceiling, cached = int(limit.read_text()), sum(int(statistics.get(name, 0)) for name in pages)
            total, available = min(total, ceiling), min(available, ceiling - int(used.read_text()) + cached)
    return total, max(available, 0)


def process_memory() -> int:
    """Bytes of host memory that this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def usable_threads() -> int:
    """CPUs that this process may really use: its affinity, and the control group's quota, which torch does not look
    at."""
    count = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            count = min(count, max(1, round(int(limit) / int(period))))
    return count


def probe_device(kind: str, dtype: str) -> Device:
    """The device to use: ``kind`` "auto", "cpu" or "cuda".

    ``dtype`` "auto" is bfloat16 on CUDA and on a CPU with AMX, which multiplies it faster, and float32 on any other
    CPU. A card before Ampere multiplies bfloat16 slowly, so there it is float16. On CUDA an upscaler then computes in
    float16: its numbers stay small, and float16 has three bits more of each.

    "auto" takes the CPU where no card can be used, with a warning if there is one. Raises SettingsError for "cuda".
    """
    reason = "the setting 'device' is 'cpu'" if kind == "cpu" else why_no_cuda()
    if reason and kind == "cuda":
        raise SettingsError(f"device is 'cuda' but {reason}, or set 'device' to 'cpu'")
    if not reason:
        return _cuda_device(dtype)
    if kind == "auto" and torch.version.cuda and driver_cuda_version():
        logger.warning("device: computing on the CPU: %s", reason)
    multiplies_bfloat16 = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    chosen = getattr(torch, dtype) if dtype != "auto" else (torch.bfloat16 if multiplies_bfloat16 else torch.float32)
    total, free = host_memory()
    return Device("cpu", f"CPU, {usable_threads()} threads", total, free, None, chosen, chosen)


def _cuda_device(dtype: str) -> Device:
    free, total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    if dtype != "auto":
        chosen = getattr(torch, dtype)
        return Device("cuda", name, total, free, capability, chosen, chosen)
    drawing = torch.bfloat16 if capability >= FAST_BFLOAT16 else torch.float16
    return Device("cuda", name, total, free, capability, drawing, torch.float16)
