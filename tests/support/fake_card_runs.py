"""The product's own set-up and predictions on a fake card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, UNet2DConditionModel
from support.fake_cuda import FakeCard
from torch import nn

import backend.devices.runtime
from backend.core.settings import Settings
from backend.memory_management import MemoryPlan, ModelSpec, Workload, plan_memory, predicted_peak
from backend.planning.activations import prediction_steps
from backend.planning.costs import DeviceMemory, Kind, Placement, moved_bytes
from backend.planning.model_specs import Curve
from modules.app.service import Service, start
from modules.detection.detections import Detections, rectangle_masks
from modules.detection.yolo import Detector
from modules.extension_optimizer import optional_features
from modules.families.autoencoder_costs import DECODE_MAPS, DECODE_MAPS_16_BIT

ALONE: Mapping[str, Any] = {"disabled_extensions": list(optional_features())}
"""Settings that leave nothing but the model that generates."""
DENOISERS = (Flux2Transformer2DModel, FluxTransformer2DModel, UNet2DConditionModel)
REQUEST: Mapping[str, Any] = {
    "prompt": "a woman with red hair",
    "seed": 1,
    "num_inference_steps": 6,
    "adetailer": False,
    "scale": 1,
}
"""Words to one picture of the native size, and nothing else."""


@dataclass(frozen=True)
class Prediction:
    """What one prediction did on the card; bytes of weights that the cache moved are ``moved``.
    ``waits_in_steps`` are those between the first and the last forward of a denoising loop."""

    flops: int
    peak_bytes: int
    uploaded: int
    pageable: int
    moved: int
    waits: tuple[tuple[str, str], ...]
    waits_in_steps: tuple[tuple[str, str], ...]


def start_on_card(model: Path, **settings: Any) -> Service:
    """The set-up without warm-up and compilation. To be called inside of a card."""
    chosen = {
        "device": "cuda",
        "compile": "off",
        "warm_up": False,
        "log_level": "WARNING",
        "quantized_cache_gb": 0,
        **settings,
    }
    return start(replace(Settings(), model=str(model), **chosen))


def predict_on_card(card: FakeCard, service: Service, **inputs: Any) -> Prediction:
    """:data:`REQUEST` with these inputs."""
    card.peak_bytes = card.allocated_bytes
    flops, uploaded, pageable, waits = card.flops, card.bytes_uploaded, card.pageable_bytes, len(card.waits)
    metrics: dict[str, Any] = {}
    card.steps.clear()
    service.predict({**REQUEST, **inputs}, metrics.__setitem__, progress=lambda *args: None)
    return Prediction(
        card.flops - flops,
        card.peak_bytes,
        card.bytes_uploaded - uploaded,
        card.pageable_bytes - pageable,
        metrics["model_bytes_moved"],
        tuple(card.waits[waits:]),
        tuple(wait for loop in card.steps for wait in card.waits[loop[0] : loop[-1]]),
    )


@contextmanager
def every_model_placed(kind: Kind, pin_bytes: int | None = None) -> Iterator[None]:
    """Inside, plans place the models that have blocks as ``kind`` says, and the others as near to that as they can be.

    ``pin_bytes`` of the host are pinned; None is all that waits.
    """
    lighter: Kind = "resident" if kind == "resident" else "model offload"

    def plan(device: Any, spec: ModelSpec, workload: Workload, *rules: Any) -> MemoryPlan:
        made = plan_memory(device, spec, workload, *rules)
        placements = {
            name: Placement(kind if component.blocks else lighter, made.placements[name].dtype)
            for name, component in spec.components.items()
        }
        waiting = sum(
            spec.components[name].size(placement.dtype)
            for name, placement in placements.items()
            if placement.kind != "resident"
        )
        peak = predicted_peak(device, spec, replace(workload, upscale_tile=made.upscale_tile), placements)
        pinned = waiting if pin_bytes is None else pin_bytes
        return replace(made, placements=placements, pin_bytes=pinned, pin_limit=pinned, predicted_peak_bytes=peak)

    with patch.object(backend.devices.runtime, "plan_memory", plan):
        yield


@contextmanager
def steps_watched(card: FakeCard, service: Service) -> Iterator[None]:
    """Inside, ``card.steps`` has for every denoising loop how often the host had waited at each forward."""
    diffusion = next(stage.service for stage in service.pipeline.stages if stage.name == "generate")  # type: ignore[attr-defined]
    denoise = diffusion.denoise

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        card.steps.append([])
        return denoise(*args, **kwargs)  # type: ignore[no-any-return]

    def forward(module: nn.Module, args: Any) -> None:
        if type(module) in DENOISERS:
            card.steps[-1].append(len(card.waits))

    hook = nn.modules.module.register_module_forward_pre_hook(forward)
    try:
        with patch.object(diffusion, "denoise", watched):
            yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class Planned:
    """What the plan says of one prediction: operations, bytes of weights that move, and the peak without what is kept
    back for the driver, and for the workspace of kernels, which a fake card does not have."""

    flops: float
    moved: int
    peak_bytes: int


def as_planned(service: Service, memory: DeviceMemory, workload: Workload) -> Planned:
    """``memory`` is that of the card before the set-up."""
    spec, plan = without_workspace(service.spec), service.runtime.plan
    steps = prediction_steps(workload, spec)
    moved = sum(
        moved_bytes(plan.placements[name], spec.components[name], step, previous)
        for step, previous in zip(steps, (None, *steps))
        for name in step.components
    )
    peak = predicted_peak(memory, spec, workload, plan.placements) - plan.reserve_bytes
    return Planned(sum(step.work * step.forwards for step in steps), moved, peak)


def without_workspace(spec: ModelSpec) -> ModelSpec:
    decode = spec.costs["decode"]
    if spec.components["vae"].dtype == "fp32":
        return spec
    maps = Curve(linear=decode.memory.linear * DECODE_MAPS / DECODE_MAPS_16_BIT)
    return replace(spec, costs={**spec.costs, "decode": replace(decode, memory=maps)})


@contextmanager
def faces_at(*boxes: tuple[int, int, int, int]) -> Iterator[None]:
    """Inside, detectors run as they do, and then find these boxes; what a card without data finds is nothing."""
    detect = Detector.detect

    def found(self: Detector, images: Any, *args: Any, **kwargs: Any) -> list[Detections]:
        results = detect(self, images, *args, **kwargs)
        places = np.array(boxes, np.float64)
        made = [Detections(places, rectangle_masks(places, image.size), np.full(len(boxes), 0.9)) for image in images]
        assert len(made) == len(results)
        return made

    with patch.object(Detector, "detect", found):
        yield
