"""Puts the package together: every model registered with the cache, and the stages that borrow them, in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers.utils.logging import disable_progress_bar

from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.devices.probe import Device
from backend.memory_management import MemoryPlan
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.offload.quantized_linear import FORMATS, quantize
from modules.app.model_files import Files
from modules.detection.classes import ClassSet
from modules.diffusion.base import DiffusionService
from modules.extension_optimizer import Selection, select
from modules.families.family import Family
from modules.output.image_writer import ModelInfo
from modules.pipeline.base import ImagePipeline, Stage
from modules.pipeline.generate import GenerateStage
from modules.prompting.prompt_upsampler import PromptUpsampler
from modules.upscaling.discovery import FIRST

if TYPE_CHECKING:
    import torch

    from modules.detection.service import Detectors


@dataclass(frozen=True)
class Assembled:
    family: Family
    upsampler: PromptUpsampler | None
    pipeline: ImagePipeline
    model: ModelInfo
    detectors: Mapping[str, ClassSet]
    """By name, the default one first. They know their classes when they are read."""
    upscalers: tuple[str, ...]
    """Their names, the default one first."""
    restores_faces: bool


def assemble(
    files: Files,
    settings: Settings,
    device: Device,
    plan: MemoryPlan,
    models: ModelCache,
    fallback: OomFallback,
    scratch: Path,
    timeline: Timeline | None = None,
) -> Assembled:
    """Registers every model with the cache and builds the enabled stages. Reads configurations, but no weights yet.

    ``scratch`` is a writable folder that lives as long as the process; ``timeline`` gets the time of every stage's
    imports.
    """
    disable_progress_bar()  # a bar for every text encoder would hide our own lines
    tile = files.sizes().vae_tile if plan.placements["vae"].tiled else 0
    planned_as = dict.fromkeys(files.cached_upscalers.values(), FIRST)  # the plan knows all upscalers as one
    for name, loader in files.loaders(device.dtype, device.upscaler_dtype, tile).items():
        stored_as = plan.placements[planned_as.get(name, name)].dtype
        models.register(
            name, partial(load_quantized, loader, stored_as, device.dtype) if stored_as in FORMATS else loader
        )
    service = files.diffusion_service(models, device.dtype, fallback, settings.prompt_cache_entries)
    extensions = select(settings)
    extensions.bring(timeline or Timeline(), scratch)
    detectors = register_detectors(files, settings, models, fallback, scratch)
    stages = [GenerateStage(service), *optional_stages(files, extensions, service, models, detectors, plan, fallback)]
    upsampler = (
        PromptUpsampler(models, files.prompt_upsampler, files.family.tokens, fallback)
        if files.prompt_upsampler
        else None
    )
    known = detectors.class_sets if detectors else {}
    return Assembled(
        files.family,
        upsampler,
        ImagePipeline(stages),
        files.model_info(),
        known,
        tuple(files.upscalers),
        files.face_restorer is not None,
    )


def optional_stages(
    files: Files,
    extensions: Selection,
    service: DiffusionService,
    models: ModelCache,
    detectors: Detectors | None,
    plan: MemoryPlan,
    fallback: OomFallback,
) -> list[Stage]:
    """The enabled stages after the first, in order. What is disabled is not imported."""
    stages: list[Stage] = []
    if files.upscalers:
        from modules.upscaling.service import UpscaleService

        upscale_service = UpscaleService(models, files.cached_upscalers, plan.upscale_tile, fallback)
    restoration = None
    if detectors and files.face_restorer:
        from modules.face_restoration.service import FaceRestoration

        restoration = FaceRestoration(models, detectors, fallback, files.face_restorer.stem)
    if "hires" in extensions.enabled:
        from modules.pipeline.hires import HiresStage

        stages.append(HiresStage(service, upscale_service))
    if detectors and "adetailer" in extensions.enabled:
        from modules.pipeline.adetailer import AdetailerStage

        stages.append(AdetailerStage(service, detectors, plan.max_detail_batch, restoration))
    if "upscale" in extensions.enabled:
        from modules.pipeline.upscale import UpscaleStage

        stages.append(UpscaleStage(upscale_service))
        if restoration:
            from modules.pipeline.face_restore import RestoreFacesStage

            stages.append(RestoreFacesStage(restoration))
    return stages


def register_detectors(
    files: Files, settings: Settings, models: ModelCache, fallback: OomFallback, scratch: Path
) -> Detectors | None:
    if not files.detectors:
        return None
    from modules.detection.yolo import offline_ultralytics

    offline_ultralytics(
        scratch / "ultralytics"
    )  # the detail pass has done so; it may be turned off while faces are restored
    from modules.adetailer_patch import redirect_detectors
    from modules.detection.service import Detectors

    redirect_detectors(settings)  # for other people's code, which asks for them by name
    return Detectors(files.detectors, settings, models, fallback)


def load_quantized(loader: Callable[[], nn.Module], stored_as: str, dtype: torch.dtype) -> nn.Module:
    """What ``loader`` gives, its blocks rounded."""
    return quantize(loader(), stored_as, dtype)
