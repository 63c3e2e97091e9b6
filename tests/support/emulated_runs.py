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
from backend.memory_management import predicted_peak
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.planning.costs import Kind, Placement
from backend.planning.gpu_specs import emulated_memory
from modules.app.model_files import find_files
from modules.app.wiring import assemble
from modules.flux_memory_optimizer import FluxMemoryOptimizer
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import ImageRequest

STREAMED = ("text_encoder_2", "transformer")
"""The models that have blocks; the others can only be resident or swapped."""


REQUEST = ImageRequest(
    prompt=PROMPT, width=256, height=256, seed=3, num_inference_steps=2, scale=2, adetailer=(AdetailerUnit(),)
)


DEVICE = Device("cpu", "emulated", 0, 0, None, torch.float32)


@dataclass(frozen=True)
class Run:
    """One run of the request: its picture, what the device saw, and the peak that the plan foretold for these
    placements."""

    picture: np.ndarray
    device: EmulatedDevice
    models: ModelCache
    fallback: OomFallback
    dtype: str
    predicted_peak: int


def run_emulated(
    placements: Mapping[str, Placement] | None,
    budget: int,
    folder: Path,
    model: str = "embedded",
    request: ImageRequest = REQUEST,
) -> Run:
    """The request with the models placed so, or as the plan for a device of ``budget`` bytes wants it."""
    settings = replace(Settings(), model=model)
    files = find_files(settings)
    workload = replace(files.workload(settings), scale=request.scale, steps=request.num_inference_steps)
    runtime = plan_device(DEVICE, files.sizes(), workload, budget)
    device, placements = runtime.transfers, placements or runtime.plan.placements
    assert isinstance(device, EmulatedDevice)
    predicted = predicted_peak(
        emulated_memory(budget, 10**10),
        files.sizes(),
        replace(workload, upscale_tile=runtime.plan.upscale_tile),
        placements,
    )
    plan = replace(runtime.plan, placements=placements)
    optimizer = FluxMemoryOptimizer(DEVICE, plan, settings)
    kinds = files.kinds({name: placement.kind for name, placement in placements.items()})
    models = ModelCache(torch.device("cpu"), device, kinds, prepare=optimizer.improve)
    fallback = OomFallback(models.downgrade)
    pipeline = assemble(files, settings, DEVICE, plan, models, fallback, folder).pipeline
    for name in models.names():
        models.load(name)
    with device:
        picture = np.asarray(pipeline.run(request).pictures[0].image)
    models.release()
    return Run(picture, device, models, fallback, placements[files.family.denoiser].dtype, predicted)


def placed(kind: Kind, folder: Path, budget: int = 10**9, dtype: str = "fp32") -> Run:
    """Every model placed as ``kind`` says, as far as it can be; those that have blocks in ``dtype``."""
    lighter: Kind = "model offload" if kind != "resident" else "resident"
    components = find_files(replace(Settings(), model="embedded")).sizes().components
    placements = {
        name: Placement(kind, dtype) if name in STREAMED else Placement(lighter, "fp32") for name in components
    }
    return run_emulated(placements, budget, folder)
