"""How long a step takes and how many weight bytes it moves under a placement: bytes over bandwidth, work over rate.

Pure, without torch. Only warm predictions are looked at: files are read before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from backend.checkpoints.entries import WEIGHTS_AT_ONCE
from backend.planning.activations import TILING_WORK, Step
from backend.planning.model_specs import PACKED, SLOWDOWN, Component

Kind = Literal["resident", "model offload", "partial", "block offload", "layer offload"]
KINDS: tuple[Kind, ...] = ("resident", "model offload", "partial", "block offload", "layer offload")
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

FEWEST_STREAMED = 3
"""Blocks of a partial model: two would never leave their two slots, and so need as much memory as if they stayed."""

LAYER_SECONDS = 1e-4
"""Hook and synchronization per layer when weights are copied layer by layer. Assumed."""


@dataclass(frozen=True)
class Placement:
    """Where one model is kept, and in which dtype.

    ``kind``: "resident" is always on the device; "model offload" is copied there when a step begins that needs it, and
    dropped without a copy back when a step begins that does not; "partial" keeps ``kept_blocks`` of its blocks on the
    device and streams those between them; "block offload" streams all of them, two on the device at a time; "layer
    offload" streams its layers, one at a time. ``tiled`` (autoencoder only): it works in overlapping tiles.
    """

    kind: Kind
    dtype: str
    tiled: bool = False
    kept_blocks: int = 0


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


def streamed_blocks(blocks: int, kept: int) -> tuple[int, ...]:
    """Which of so many blocks are streamed when ``kept`` stay on the device: evenly spread, the last one among them."""
    streamed = blocks - kept
    return tuple((index + 1) * blocks // streamed - 1 for index in range(streamed))


@lru_cache(maxsize=4096)  # a search asks for each of them in several steps, and the next search again
def _streamed_sizes(placement: Placement, component: Component) -> tuple[int, ...]:
    """Bytes of every block that is streamed, in order."""
    indices = streamed_blocks(len(component.blocks), placement.kept_blocks)
    # a model has many blocks, and few kinds of them
    sizes = {count: component.blocks_bytes(count, placement.dtype) for count in set(component.blocks)}
    return tuple(sizes[component.blocks[index]] for index in indices)


def waiting_bytes(placement: Placement, component: Component) -> int:
    """Bytes that are in host memory, ready to be copied to the device."""
    if placement.kind == "resident":
        return 0
    return (
        sum(_streamed_sizes(placement, component)) if placement.kind == "partial" else component.size(placement.dtype)
    )


def standing_bytes(placement: Placement, component: Component) -> int:
    """Bytes that are always on the device."""
    if placement.kind not in ("resident", "partial"):
        return 0
    return component.size(placement.dtype) - waiting_bytes(placement, component)


def scratch_bytes(placement: Placement, component: Component) -> int:
    """Bytes of a layer's weights in the dtype that it computes in, beside those that are stored."""
    if placement.dtype not in ("fp8", "nf4", PACKED):
        return 0
    largest = component.largest_layer
    if placement.dtype == PACKED:
        return component.bytes_of(largest) + int(PACKED_SCRATCH_BYTES * min(largest, WEIGHTS_AT_ONCE))
    largest = min(largest, max(component.blocks, default=largest))  # only blocks are rounded
    return component.bytes_of(largest) + (NF4_INDEX_BYTES * largest if placement.dtype == "nf4" else 0)


def passing_bytes(placement: Placement, component: Component) -> int:
    """Bytes that are on the device only while a step uses the component."""
    scratch = scratch_bytes(placement, component)
    if placement.kind in ("partial", "block offload"):
        # a slot for the block that computes and one for the block that is being copied, and what is outside of blocks
        outside = component.bytes_of(component.outside_blocks) if placement.kind == "block offload" else 0
        return 2 * max(_streamed_sizes(placement, component)) + outside + scratch
    if placement.kind == "layer offload":
        return component.bytes_of(component.largest_layer)
    return scratch + (component.size(placement.dtype) if placement.kind == "model offload" else 0)


def moved_bytes(placement: Placement, component: Component, step: Step, previous: Step | None) -> int:
    """Weight bytes that go to the device for one component in one step; none ever come back."""
    if placement.kind == "resident" or (
        placement.kind == "model offload" and previous and previous.components == step.components
    ):
        return 0
    if placement.kind in ("partial", "block offload"):
        # behind the last block of a forward comes the first one of the next, and nobody knows which forward is the last
        sizes = _streamed_sizes(placement, component)
        outside = component.bytes_of(component.outside_blocks) if placement.kind == "block offload" else 0
        return sum(sizes) * step.forwards + sizes[0] + outside
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
    if placement.kind in ("partial", "block offload") and device.type == "cuda":
        # only pinned memory is copied beside the computation
        return max(compute, copy * pinned) + OVERLAP_LOSS * copy * pinned + pageable
    hooks = LAYER_SECONDS * component.layers * step.forwards if placement.kind == "layer offload" else 0
    return compute + copy * pinned + pageable + hooks
