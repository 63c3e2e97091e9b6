"""What the memory planner returns: the plan, or the error that says what is missing. Pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from backend.core.errors import UserError
from backend.planning.advice import DEVICE, HOST, Change
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
        max_tile_batch: How many tiles of a large picture may be denoised in one batch: as many as fit beside the models
            and the latents of the whole, at most 8.
        one_pass_pixels: The most pixels of one picture that the denoiser takes in one pass, if the other models leave.
        upscale_tile: Longest side in pixels of the upscaler's tiles: that of its pictures, if the workload allows it
            and memory is not short.
        pin_bytes: Host memory to pin for models that are not resident.
        reread_bytes: Bytes of waiting models that the host's memory does not hold: they are read from the disk whenever
            they are needed.
        pin_limit: Host memory that may be pinned at most, if models have to leave the device after all.
        picture_bytes: Host memory that a picture takes that is finished at its own size, where one was planned for.
        step_bytes: For every model the bytes of activations of the largest step that needs it, and of the weights that
            it dequantizes meanwhile.
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
    max_tile_batch: int
    one_pass_pixels: int
    upscale_tile: int
    pin_bytes: int
    reread_bytes: int
    pin_limit: int
    picture_bytes: int
    step_bytes: Mapping[str, int]
    use_streams: bool
    predicted_peak_bytes: int
    predicted_seconds: float
    reasons: tuple[str, ...]


class MemoryPlanError(UserError):
    """No plan fits.

    ``problem`` says what is missing, ``missing_bytes`` how much the combination that needs least still lacks. With
    ``changes`` a plan fits; ``field`` is the first of them that is an input or a setting, else "model".
    """

    def __init__(self, problem: str, missing_bytes: int, changes: Sequence[Change]) -> None:
        fields = [change.field for change in changes if change.field not in (DEVICE, HOST)]
        self.field, self.changes = fields[0] if fields else "model", tuple(changes)
        self.problem, self.missing_bytes = problem, missing_bytes
        advice = " and ".join(map(str, changes)) or "choose a smaller model"
        smaller = ", or choose a smaller model" if changes and not fields else ""
        super().__init__(f"{self.field}: {problem}; {advice}{smaller}")
