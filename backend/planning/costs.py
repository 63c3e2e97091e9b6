"""How long a step takes and how many weight bytes it moves under a placement: bytes over bandwidth, work over rate.

Pure, without torch. Only warm predictions are looked at: files are read before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backend.checkpoints.entries import WEIGHTS_AT_ONCE
from backend.planning.activations import TILING_WORK, Step
from backend.planning.model_specs import PACKED, SLOWDOWN, Component

Kind = Literal["resident", "model offload", "block offload", "layer offload"]
KINDS: tuple[Kind, ...] = ("resident", "model offload", "block offload", "layer offload")
"""From what touches the weights least to what needs the least memory."""

PAGEABLE_SPEED = 0.25
"""Speed of a copy from memory that is not pinned, as a share of the pinned one. In diffusers' pull request 11682
accelerate's layer offload copied 676 GB in 62 s on an H100, a quarter of what its bus can do; its component offload
copied 67.5 GB in 15.1 s, where new memory for the way back counts too."""
DISK_BANDWIDTH = 1.07e9
"""Bytes per second of a page of a file that is not in memory: safetensors' mapping of a file on fast storage, as the
authors of InstantTensor measured it."""

OVERLAP_LOSS = 0.25
"""Share of a copy's time that is lost although the copy runs beside the computation (memory traffic, synchronization).
Assumed, and on the strict side: the one published figure, vllm-omni's pull request 1223, is 3.6% of a whole run. What
depends on it is in docs/memory.md; to be replaced by a measurement."""

NF4_INDEX_BYTES = 2
"""While a layer is dequantized, bytes per weight of the indices into the table: an int32 for every two weights."""

PACKED_SCRATCH_BYTES = 16.5
"""While packed weights are dequantized, bytes of each that is on its way: bits, and values in float32 before and after
the scale. Counted on every format; Q5_K takes most."""

LAYER_SECONDS = 1e-4
"""Hook and synchronization per layer when weights are copied layer by layer. Assumed."""


@dataclass(frozen=True)
class Placement:
    """Where one model is kept, and in which dtype.

    ``kind``: "resident" is always on the device; "model offload" is copied there when a step begins that needs it, and
    dropped without a copy back when a step begins that does not; "block offload" streams its blocks, two on the device
    at a time; "layer offload" streams its layers, one at a time. ``tiled`` (autoencoder only): it works in overlapping
    tiles.
    """

    kind: Kind
    dtype: str
    tiled: bool = False


@dataclass(frozen=True)
class DeviceMemory:
    """The device and its link to the host, as far as the plan needs them.

    Attributes:
        type: "cuda"; "emulated" (host memory with a budget); "cpu"; "unified" (the GPU computes in the host's own
            memory).
        total_bytes: All memory of the device; for "cpu" and "unified" that of the host.
        free_bytes: What of it is free before our models are loaded; None = all.
        host_bytes: Host memory that this process may fill beside the device.
        copy_bandwidth: Bytes per second from pinned host memory to the device.
        flops: Sustained operations per second in bf16.
        capability: CUDA compute capability, None where there is none.
    """

    type: Literal["cuda", "emulated", "cpu", "unified"]
    total_bytes: int
    free_bytes: int | None = None
    host_bytes: int = 64 * 10**9
    copy_bandwidth: float = 25e9
    flops: float = 75e12
    capability: tuple[int, int] | None = None

    @property
    def held_bytes(self) -> int:
        """What others hold."""
        return 0 if self.free_bytes is None else self.total_bytes - self.free_bytes


def passing_bytes(placement: Placement, component: Component) -> int:
    """Bytes that are on the device only while a step uses the component."""
    # while a layer computes, its weights are also there in the dtype that it computes in
    dequantized = component.bytes_of(component.largest_layer) if placement.dtype in ("fp8", "nf4", PACKED) else 0
    if placement.dtype == PACKED:
        dequantized += int(PACKED_SCRATCH_BYTES * min(component.largest_layer, WEIGHTS_AT_ONCE))
    dequantized += NF4_INDEX_BYTES * component.largest_layer if placement.dtype == "nf4" else 0
    if placement.kind == "block offload":
        # the block that computes, the one that is being copied, and what is outside of blocks
        return (
            component.blocks_bytes(sum(sorted(component.blocks)[-2:]), placement.dtype)
            + component.bytes_of(component.outside_blocks)
            + dequantized
        )
    if placement.kind == "layer offload":
        return component.bytes_of(component.largest_layer)
    return dequantized + (component.size(placement.dtype) if placement.kind == "model offload" else 0)


def moved_bytes(placement: Placement, component: Component, step: Step, previous: Step | None) -> int:
    """Weight bytes that go to the device for one component in one step; none ever come back."""
    if placement.kind == "resident" or (
        placement.kind == "model offload" and previous and previous.components == step.components
    ):
        return 0
    return component.size(placement.dtype) * (1 if placement.kind == "model offload" else step.forwards)


def step_seconds(
    placement: Placement,
    component: Component,
    step: Step,
    moved: int,
    works: bool,
    device: DeviceMemory,
    pinned: float,
    reread: float = 0,
) -> float:
    """Seconds that one component adds to a step that moves ``moved`` bytes for it; ``pinned`` is the pinned share of
    its bytes, ``reread`` the share that comes from the disk.

    ``works`` tells whether it is the component that does the step's work.
    """
    compute = works * step.work * step.forwards * SLOWDOWN.get(placement.dtype, 1) / device.flops
    if placement.tiled and step.tiled_memory < step.memory:
        compute *= TILING_WORK
    copy = moved / device.copy_bandwidth
    pageable = copy * (1 - pinned) / PAGEABLE_SPEED + moved * reread / DISK_BANDWIDTH
    if placement.kind == "block offload" and device.type == "cuda":
        # only pinned memory is copied beside the computation
        return max(compute, copy * pinned) + OVERLAP_LOSS * copy * pinned + pageable
    hooks = LAYER_SECONDS * component.layers * step.forwards if placement.kind == "layer offload" else 0
    return compute + copy * pinned + pageable + hooks
