"""The device at work: how weights get there, what its memory holds, and the plan for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch

from backend.core.timeline import Timeline
from backend.devices.emulated import EmulatedDevice
from backend.devices.probe import Device, host_memory, process_memory
from backend.devices.speed import measure_speed, with_measured
from backend.memory_management import MemoryPlan, MemoryRules, Workload, plan_memory
from backend.planning.advice import SET_UP, SET_UP_EMULATED
from backend.planning.costs import DeviceMemory, Kind
from backend.planning.gpu_specs import emulated_memory, nearest_card, recognized_card
from backend.planning.model_specs import ModelSpec
from backend.planning.rules import DEFAULT_RULES
from backend.stream import CudaTransfers, HostTransfers, Transfers


@dataclass(frozen=True)
class DeviceRuntime:
    """A device with the plan for its memory and the transfers to it."""

    device: Device
    plan: MemoryPlan
    transfers: Transfers

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """How every model lives, for the model cache."""
        return {name: placement.kind for name, placement in self.plan.placements.items()}

    @property
    def kept_blocks(self) -> Mapping[str, int]:
        """How many blocks of every partial model stay on the device, for the model cache."""
        return {name: placement.kept_blocks for name, placement in self.plan.placements.items()}

    def activate(self) -> AbstractContextManager[object]:
        """Inside this context the device computes: an emulated one counts what is made."""
        return self.transfers if isinstance(self.transfers, EmulatedDevice) else nullcontext()

    def timeline(self) -> Timeline:
        """A timeline that measures peak memory: the device's where it has its own, else the process's."""
        if isinstance(self.transfers, EmulatedDevice):
            emulated = self.transfers
            return Timeline(lambda: emulated.peak_bytes, emulated.reset_peak)
        if self.device.kind == "cuda":
            return Timeline(torch.cuda.max_memory_allocated, torch.cuda.reset_peak_memory_stats)
        return Timeline(process_memory)


def device_memory(device: Device, emulated_bytes: int | None) -> DeviceMemory:
    """The device as the plan sees it. Its speed is that of a card of its name, or else of the usual card that is
    nearest in size.

    ``emulated_bytes`` makes a CUDA device as small as that, and puts one of host memory in the place of a CPU.
    """
    total, available = host_memory()
    if device.kind == "cuda":
        card = recognized_card(device.name, device.total_bytes) or nearest_card(device.total_bytes, device.capability)
        memory = card.device(device.total_bytes, available)
        limit = min(emulated_bytes or device.total_bytes, device.total_bytes)
        # the probe has made the driver's context, which the plan keeps back anyway
        free = min(device.free_bytes + DEFAULT_RULES.context_bytes, limit)
        return replace(memory, total_bytes=limit, free_bytes=free, capability=device.capability)
    if emulated_bytes:
        return emulated_memory(emulated_bytes, available)
    kind: Literal["cpu"] = "cpu"
    return DeviceMemory(kind, total, available, total)


def plan_device(
    device: Device,
    models: ModelSpec,
    workload: Workload,
    emulated_bytes: int | None = None,
    weight_precision: str = "bf16",
) -> DeviceRuntime:
    """Plans the device's memory and opens the way to it. Raises :class:`~backend.memory_management.MemoryPlanError`
    when nothing fits."""
    memory = device_memory(device, emulated_bytes)
    if device.kind == "cuda":
        known = recognized_card(device.name, device.total_bytes) is not None
        memory = with_measured(memory, measure_speed(device.torch_device, device.dtype), known)
    rules = MemoryRules(weight_precision=weight_precision)
    changeable = SET_UP_EMULATED if emulated_bytes and device.kind != "cuda" else SET_UP
    plan = plan_memory(memory, models, workload, rules, changeable)
    if device.kind == "cuda":
        if emulated_bytes:  # the driver's context is outside of what torch counts
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, (emulated_bytes - rules.context_bytes) / device.total_bytes)
            )
        return DeviceRuntime(device, plan, CudaTransfers(device.torch_device, plan.pin_limit))
    return DeviceRuntime(device, plan, EmulatedDevice(emulated_bytes) if emulated_bytes else HostTransfers())
