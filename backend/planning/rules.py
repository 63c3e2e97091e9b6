"""The rules of the memory planner: how a device's memory is divided, and how far weights may be rounded. Pure, without
torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from backend.core.errors import SettingsError, nearest
from backend.core.units import GIB
from backend.planning.costs import DeviceMemory

LEVELS = ("bf16", "fp8", "nf4")
"""How far weights may be rounded; each allows those before it. "bf16" rounds nothing: weights stay in the type that the
model computes in."""
WEIGHT_PRECISIONS = ("auto", *LEVELS, "gguf")
"""What can be asked for. "auto" is decided in ``backend/planning/precision.py``; "gguf" is for files that hold such
weights, which are not rounded any further."""
ROUNDING: Mapping[str, int] = MappingProxyType({"fp8": 1, "fp8_compute": 1, "nf4": 2})
"""How much a format rounds, to compare plans by; formats that are not listed round nothing."""
UNROUNDED = ("fp32", "bf16", "fp16")
"""The formats of a checkpoint whose weights were not rounded before."""
LOADED_FORMATS = frozenset({"fp8", "fp8_compute", "nf4"})
"""What ``backend/offload/quantized_linear.py`` can load."""
FP8_COMPUTE_CAPABILITY = (8, 9)
"""CUDA compute capability from which on a card multiplies in fp8."""


@dataclass(frozen=True)
class MemoryRules:
    """The rules of the Flux predictor's document; its GB are GiB, as torch and nvidia-smi count.

    A card of more than ``large_card_bytes`` sets ``large_inference_share`` of its memory aside for inference and the
    rest for models, uses at most ``large_used_share``, keeps ``large_reserve_bytes`` of it back, and becomes LOW_VRAM
    only when models exceed their share by more than ``large_overrun_bytes``. Other devices set ``inference_share``
    aside and keep back ``context_bytes`` for the driver's context and ``fragmentation_share`` of their memory (1.25 GiB
    of 50, the document's figure). ``weight_precision`` is one of :data:`WEIGHT_PRECISIONS`; ``formats`` are the
    quantized formats that can be loaded. A denoiser that can be rounded is stored in one of ``denoiser_formats``, where
    they are given; without ``partial`` it does not keep a part of its blocks. At most ``host_share`` of the host's
    memory is filled with weights that are no pages of a file, and at most ``pinned_share`` is pinned.

    Raises SettingsError for an unknown weight_precision.
    """

    large_card_bytes: int = 50 * GIB
    large_inference_share: float = 0.25
    large_used_share: float = 0.87
    large_reserve_bytes: int = 2 * GIB
    large_overrun_bytes: int = GIB
    inference_share: float = 0.6
    context_bytes: int = GIB // 2
    fragmentation_share: float = 0.015
    weight_precision: str = "bf16"
    formats: frozenset[str] = LOADED_FORMATS
    denoiser_formats: frozenset[str] = frozenset()
    partial: bool = True
    host_share: float = 0.75
    pinned_share: float = 0.5

    def __post_init__(self) -> None:
        if self.weight_precision not in WEIGHT_PRECISIONS:
            raise SettingsError(
                f"weight_precision must be one of {', '.join(WEIGHT_PRECISIONS)}, not "
                f"'{self.weight_precision}'{nearest(self.weight_precision, WEIGHT_PRECISIONS)}"
            )

    @property
    def precision_rank(self) -> int:
        """0 where no weight may be rounded, more the further they may be."""
        return LEVELS.index(self.weight_precision) if self.weight_precision in LEVELS else 0


DEFAULT_RULES = MemoryRules()


def is_large(device: DeviceMemory, rules: MemoryRules) -> bool:
    return device.type in ("cuda", "emulated") and device.total_bytes > rules.large_card_bytes


def has_own_memory(device: DeviceMemory) -> bool:
    """Whether a model that leaves the device frees memory there."""
    return device.type in ("cuda", "emulated")


def computes_fp8(device: DeviceMemory, dtype: str) -> bool:
    """Whether the device multiplies in fp8 for a model that computes in ``dtype``: torch's products with a scale for
    every row give bfloat16 only, in which weights that are stored in fp8 compute too."""
    if dtype not in ("bf16", "fp8") or device.type != "cuda":
        return False
    return (device.capability or (0, 0)) >= FP8_COMPUTE_CAPABILITY


def inference_share(device: DeviceMemory, rules: MemoryRules) -> float:
    """The share of the device's memory that the rules set aside for inference, 0 to 1."""
    return rules.large_inference_share if is_large(device, rules) else rules.inference_share


def usable_bytes(device: DeviceMemory, rules: MemoryRules) -> tuple[int, int]:
    """What weights and activations may fill, and the reserve beside it, in bytes.

    It grows with the device's memory everywhere: where 87% of a large card is less than all of the largest other card,
    the latter holds.
    """
    emulated = device.type == "emulated"
    ordinary = min(device.total_bytes, rules.large_card_bytes) if is_large(device, rules) else device.total_bytes
    reserve = 0 if emulated else rules.context_bytes + int(rules.fragmentation_share * ordinary)
    usable = ordinary - reserve
    if is_large(device, rules):
        large_reserve = 0 if emulated else rules.large_reserve_bytes
        usable, reserve = max(
            (usable, reserve), (int(rules.large_used_share * device.total_bytes) - large_reserve, large_reserve)
        )
    return usable - device.held_bytes, reserve
