"""The embedded family run on an emulated device, in any placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from support.pictures import PROMPT

from backend.core.settings import Settings
from backend.devices.emulated import EmulatedDevice
from backend.devices.probe import Device
from backend.devices.runtime import plan_device
from backend.memory_management import MemoryPlan, predicted_peak
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.planning.costs import Kind, Placement
from backend.planning.gpu_specs import emulated_memory
from modules.app.model_files import find_files
from modules.app.wiring import assemble
from modules.extension_optimizer import select
from modules.flux_memory_optimizer import FluxMemoryOptimizer
from modules.pipeline.base import ImagePipeline
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest

STREAMED = ("text_encoder_2", "transformer")
"""The models that have blocks; the others can only be resident or offloaded whole."""
KEPT = {"text_encoder_2": 1, "transformer": 4}
"""How many of their 4 and 8 blocks stay when they are partial."""


REQUEST = ImageRequest(
    prompt=PROMPT, width=256, height=256, seed=3, num_inference_steps=2, scale=2, adetailer=(AdetailerUnit(),)
)


DEVICE = Device("cpu", "emulated", 0, 0, None, torch.float32)


@dataclass(frozen=True)
class Run:
    """One run of the request: its picture, what the device saw, and the peak that the plan predicted for these
    placements."""

    picture: np.ndarray
    device: EmulatedDevice
    models: ModelCache
    fallback: OomFallback
    dtype: str
    predicted_peak: int


@dataclass(frozen=True)
class EmulatedPipeline:
    """All stages over models on an emulated device."""

    device: EmulatedDevice
    models: ModelCache
    fallback: OomFallback
    pipeline: ImagePipeline
    plan: MemoryPlan
    dtype: str
    predicted_peak: int

    def run(self, request: ImageRequest) -> np.ndarray:
        """The request's first picture, height x width x 3."""
        with self.device:
            return np.asarray(self.pipeline.run(request).pictures[0].image)


def emulated_pipeline(
    placements: Mapping[str, Placement] | None,
    budget: int,
    folder: Path,
    model: str = "embedded",
    request: ImageRequest = REQUEST,
) -> EmulatedPipeline:
    """With the models placed so, or as the plan for a device of ``budget`` bytes and such requests wants it."""
    settings = replace(Settings(), model=model)
    files = find_files(settings)
    workload = replace(files.workload(settings), scale=request.scale, steps=request.num_inference_steps)
    runtime = plan_device(DEVICE, files.spec(), workload, budget)
    device, placements = runtime.transfers, placements or runtime.plan.placements
    assert isinstance(device, EmulatedDevice)
    predicted = predicted_peak(
        emulated_memory(budget, 10**10),
        files.spec(),
        replace(workload, upscale_tile=runtime.plan.upscale_tile),
        placements,
    )
    plan = replace(runtime.plan, placements=placements)
    optimizer = FluxMemoryOptimizer(DEVICE, plan, settings)
    kinds = files.kinds({name: placement.kind for name, placement in placements.items()})
    kept = {name: placement.kept_blocks for name, placement in placements.items()}
    models = ModelCache(torch.device("cpu"), device, kinds, plan.step_bytes, optimizer.improve, kept)
    fallback = OomFallback(models)
    selection = select(settings).without(files.missing_models)
    pipeline = assemble(files, selection, settings, DEVICE, plan, models, fallback, folder).pipeline
    for name in models.names():
        models.load(name)
    return EmulatedPipeline(
        device, models, fallback, pipeline, plan, placements[files.profile.denoiser].dtype, predicted
    )


def run_emulated(
    placements: Mapping[str, Placement] | None,
    budget: int,
    folder: Path,
    model: str = "embedded",
    request: ImageRequest = REQUEST,
) -> Run:
    """The request on an :func:`emulated_pipeline` of its own."""
    made = emulated_pipeline(placements, budget, folder, model, request)
    picture = made.run(request)
    made.models.release()
    return Run(picture, made.device, made.models, made.fallback, made.dtype, made.predicted_peak)


def placed(kind: Kind, folder: Path, budget: int = 10**9, dtype: str = "fp32") -> Run:
    """Every model placed as ``kind`` says, as far as it can be; those that have blocks in ``dtype``."""
    lighter: Kind = "model offload" if kind != "resident" else "resident"
    components = find_files(replace(Settings(), model="embedded")).spec().components
    placements = {
        name: Placement(kind, dtype, kept_blocks=KEPT[name] * (kind == "partial"))
        if name in STREAMED
        else Placement(lighter, "fp32")
        for name in components
    }
    return run_emulated(placements, budget, folder)
