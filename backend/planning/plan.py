"""What the memory planner returns: the plan, or the error that says what is missing. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from backend.core.errors import UserError
from backend.planning.costs import Placement


class VRAMState(Enum):
    """How the device's memory is used, by the names that WebUI users know."""

    DISABLED = auto()
    """No GPU: everything is in host memory."""
    NO_VRAM = auto()
    """At least one model is copied to the device layer by layer."""
    LOW_VRAM = auto()
    """Not all models stay on the device: they exceed their share by more than the rules tolerate."""
    NORMAL_VRAM = auto()
    HIGH_VRAM = auto()
    """A large card that keeps its models."""
    SHARED = auto()
    """The GPU computes in host memory: offloading a model would free nothing."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where every model is placed, and what that costs.

    Attributes:
        inference_bytes: The share set aside for inference: by the rules, or what the workload needs when that is more.
        model_bytes: The rest of the device. Models may borrow what a workload leaves unused of the inference share.
        reserve_bytes: Kept back for the driver's context and fragmentation.
        max_detail_batch: How many details may be repainted in one batch: as many as fit beside the models, at most 8.
        upscale_tile: Longest side in pixels of the upscaler's tiles: that of its pictures, if the workload allows it
            and memory is not short.
        pin_bytes: Host memory to pin for models that are not resident.
        use_streams: Whether copies run beside the computation.
        predicted_peak_bytes: What the device holds at the worst moment of a prediction: the resident models, the models
            in use, their activations, and the reserve. An emulated device has no reserve.
        predicted_seconds: A warm prediction with a new prompt, to a tenth: computation and copies, without reading
            files and encoding images.
        reasons: Why, one sentence each.
    """

    state: VRAMState
    inference_bytes: int
    model_bytes: int
    reserve_bytes: int
    placements: Mapping[str, Placement]
    max_detail_batch: int
    upscale_tile: int
    pin_bytes: int
    use_streams: bool
    predicted_peak_bytes: int
    predicted_seconds: float
    reasons: tuple[str, ...]


class MemoryPlanError(UserError):
    """No plan fits. ``missing_bytes`` is what the combination that needs least still lacks; ``field`` is the input or
    setting to change."""

    def __init__(self, message: str, missing_bytes: int, field: str) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
        self.field = field
