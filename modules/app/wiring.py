"""Puts the package together: the memory plan, every model in the cache, and the stages that borrow them, in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers.utils.logging import disable_progress_bar

from backend.checkpoints.packed_weight import unpack
from backend.core.errors import WeightsError
from backend.core.settings import ROOT, Settings
from backend.core.timeline import Timeline
from backend.core.units import parse_bytes
from backend.devices.probe import Device
from backend.devices.runtime import DeviceRuntime, plan_device
from backend.memory_management import MemoryPlan
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.offload.packed_linear import keep_packed
from backend.offload.quantized_cache import QuantizedCache
from backend.offload.quantized_linear import FORMATS, quantize, why_no_products
from backend.planning.model_specs import PACKED, ModelSpec
from modules.app.model_files import Files, find_files, lora_bytes, lora_sources
from modules.detection.classes import ClassSet
from modules.diffusion.base import DiffusionService
from modules.diffusion.profile import ModelProfile
from modules.extension_optimizer import Selection
from modules.families.registry import Families
from modules.flux_memory_optimizer import FluxMemoryOptimizer
from modules.lora.files.disk_cache import DiskCache
from modules.lora.files.store import LoraStore
from modules.output.image_writer import ModelInfo
from modules.pipeline.base import ImagePipeline, Services
from modules.prompting.prompt_upsampler import PromptUpsampler
from modules.safety.discovery import SAFETY_CHECKER, CheckerSource
from modules.upscaling.discovery import FIRST

if TYPE_CHECKING:
    import torch

    from modules.detection.service import DetectionService
    from modules.safety.service import SafetyService

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembled:
    profile: ModelProfile
    upsampler: PromptUpsampler | None
    pipeline: ImagePipeline
    model: ModelInfo
    detectors: dict[str, ClassSet]
    """By name, the default one first. Their classes are known once they are loaded."""
    upscalers: tuple[str, ...]
    """Their names, the default one first."""
    restores_faces: bool
    diffusion: DiffusionService
    left_out: dict[str, str]
    """Why other files cannot be used, by the names that inputs would give them."""


@dataclass(frozen=True)
class SetUp:
    """What a service is made of."""

    files: Files
    selection: Selection
    spec: ModelSpec
    runtime: DeviceRuntime
    optimizer: FluxMemoryOptimizer
    models: ModelCache
    fallback: OomFallback
    assembled: Assembled


def set_up(
    settings: Settings, selection: Selection, families: Families, device: Device, scratch: Path, timeline: Timeline
) -> SetUp:
    """Plans the memory, builds the stages and loads every model, each in a span of the timeline.

    ``scratch`` is a writable folder that lives as long as the process. Raises a
    :class:`backend.core.errors.UserError` for what is missing or does not fit.
    """
    with timeline.span("plan"):
        files = find_files(settings, selection, families)
        selection = selection.without(files.missing_models)
        spec = files.spec(device.dtype, device.upscaler_dtype)
        emulated = parse_bytes(settings.emulate_vram) if settings.emulate_vram else None
        on_card = emulated or (device.total_bytes if device.kind == "cuda" else 0)
        reserved = lora_bytes(settings, on_card, device.dtype.itemsize) if on_card else 0
        workload = replace(files.workload(settings), lora_bytes=reserved)
        runtime = plan_device(device, spec, workload, emulated, settings.weight_precision)
    optimizer = FluxMemoryOptimizer(device, runtime.plan, settings, files.cached_upscalers.values())
    optimizer.set_process_options()
    models = ModelCache(
        device.torch_device,
        runtime.transfers,
        files.kinds(runtime.kinds),
        runtime.plan.step_bytes,
        optimizer.improve,
        runtime.kept_blocks,
    )
    fallback = OomFallback(models)
    with timeline.span("stages"):
        assembled = assemble(files, selection, settings, device, runtime.plan, models, fallback, scratch, timeline)
    assembled.diffusion.adapters.limit = reserved or None
    # what waits is pinned in this order, and the denoiser is uploaded in every step
    denoiser_first = sorted(models.names(), key=lambda name: name != files.profile.denoiser)
    with timeline.span("models"):
        for name in denoiser_first:
            with timeline.span(name):
                load_or_leave_out(name, files, models, assembled)
    return SetUp(files, selection, spec, runtime, optimizer, models, fallback, assembled)


def load_or_leave_out(name: str, files: Files, models: ModelCache, assembled: Assembled) -> None:
    """Loads a model. A detector that no setting names is left out where it cannot be used."""
    try:
        models.load(name)
    except WeightsError as problem:
        if name not in files.optional_detectors:
            raise
        logger.warning("detector left out: %s", problem)
        models.forget(name)
        del assembled.detectors[name]  # also for the service that detects
        assembled.left_out[name] = str(problem)


def assemble(
    files: Files,
    selection: Selection,
    settings: Settings,
    device: Device,
    plan: MemoryPlan,
    models: ModelCache,
    fallback: OomFallback,
    scratch: Path,
    timeline: Timeline | None = None,
) -> Assembled:
    """Registers every model with the cache and builds the enabled stages. Reads configurations, but no weights yet.

    ``scratch`` is a writable folder that lives as long as the process; ``timeline`` gets the time of every feature's
    imports.
    """
    disable_progress_bar()  # a bar for every text encoder would hide our own lines
    register_models(files, device, plan, models, quantized_cache(settings))
    diffusion = files.model.family.service(
        files.model.source, models, device.dtype, fallback, settings.prompt_cache_entries
    )
    selection.import_libraries(timeline or Timeline(), scratch)
    services = build_services(files, settings, diffusion, models, plan, fallback, scratch)
    upsampler = (
        PromptUpsampler(models, files.prompt_upsampler, files.profile.tokens, fallback)
        if files.prompt_upsampler
        else None
    )
    return Assembled(
        files.profile,
        upsampler,
        ImagePipeline(stage.build(services) for stage in selection.enabled_stages),
        files.model_info(),
        services.detectors.class_sets if services.detectors else {},
        tuple(files.upscalers),
        files.face_restorer is not None,
        diffusion,
        dict(files.left_out),
    )


def quantized_cache(settings: Settings) -> QuantizedCache:
    """Where quantized weights are kept: in the folder of the settings, else in the user's cache."""
    folders = (ROOT / settings.quantized_cache, _cache_of_user() / "quantized")
    return QuantizedCache(folders, settings.quantized_cache_gb * 10**9)


def lora_store(settings: Settings) -> LoraStore:
    """Where LoRA files come from, and where downloaded ones are kept: in the folder of the settings, else in the user's
    cache."""
    folders = (ROOT / settings.lora_cache, _cache_of_user() / "loras")
    return LoraStore(lora_sources(settings), DiskCache(folders, settings.lora_cache_gb * 10**9))


def _cache_of_user() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cog-flux-adetailer"


def register_models(
    files: Files, device: Device, plan: MemoryPlan, models: ModelCache, quantized: QuantizedCache
) -> None:
    """Tells the cache how every model is loaded, in the precision of the plan."""
    tile = files.spec().vae_tile if plan.placements["vae"].tiled else 0
    planned_as = dict.fromkeys(files.cached_upscalers.values(), FIRST)  # the plan knows all upscalers as one
    for name, loader in files.loaders(device.dtype, device.upscaler_dtype, tile).items():
        stored_as = plan.placements[planned_as.get(name, name)].dtype
        if stored_as == "fp8_compute" and (why := why_no_products(device.torch_device, device.dtype)):
            logger.warning("%s: weights are in fp8, products are not: %s", name, why)
            stored_as = "fp8"
        if stored_as in FORMATS:
            key = partial(files.content_key, name, stored_as, str(device.dtype))
            loader = partial(load_quantized, loader, stored_as, device, key, quantized)
        models.register(name, partial(load_as_stored, loader, stored_as, device.dtype))


def build_services(
    files: Files,
    settings: Settings,
    diffusion: DiffusionService,
    models: ModelCache,
    plan: MemoryPlan,
    fallback: OomFallback,
    scratch: Path,
) -> Services:
    """What the stages are built from. A service is imported only where the files of its models were asked for."""
    upscale = detectors = restoration = safety = None
    if files.upscalers:
        from modules.upscaling.service import UpscaleService

        upscale = UpscaleService(models, files.cached_upscalers, plan.upscale_tile, fallback)
    if files.detectors:
        detectors = register_detectors(files, settings, models, fallback, scratch)
    if detectors and files.face_restorer:
        from modules.face_restoration.service import FaceRestoration

        restoration = FaceRestoration(models, detectors, fallback, files.face_restorer.stem)
    if files.safety_checker:
        safety = build_safety(files.safety_checker, settings, models, fallback, scratch)
    return Services(diffusion, plan, upscale, detectors, restoration, safety)


def build_safety(
    source: CheckerSource, settings: Settings, models: ModelCache, fallback: OomFallback, scratch: Path
) -> SafetyService:
    """The safety checker, registered with the cache."""
    from modules.detection.yolo import offline_ultralytics

    offline_ultralytics(scratch / "ultralytics")  # as in register_detectors
    from modules.safety.networks import load_safety_checker
    from modules.safety.service import SafetyService

    models.register(SAFETY_CHECKER, partial(load_safety_checker, source, settings.safety_classes))
    return SafetyService(models, fallback, source.label, settings.safety_threshold)


def register_detectors(
    files: Files, settings: Settings, models: ModelCache, fallback: OomFallback, scratch: Path
) -> DetectionService:
    """The detectors, by whose names other people's code gets the local files too."""
    from modules.detection.yolo import offline_ultralytics

    offline_ultralytics(scratch / "ultralytics")  # before anything imports ultralytics, whatever a stage imported
    from modules.adetailer_patch import redirect_detectors
    from modules.detection.service import DetectionService

    redirect_detectors(settings)
    return DetectionService(files.detectors, settings, models, fallback)


def load_quantized(
    loader: Callable[[], nn.Module], stored_as: str, device: Device, key: Callable[[], str], kept: QuantizedCache
) -> nn.Module:
    """The module that ``loader`` reads, with the weights of its blocks quantized: on the device where there is one, and
    only if ``kept`` has no entry of this key."""
    return kept.module(key(), lambda: unpack(quantize(loader(), stored_as, device.dtype, device.torch_device)))


def load_as_stored(loader: Callable[[], nn.Module], stored_as: str, dtype: torch.dtype) -> nn.Module:
    """The module that ``loader`` reads. What its file has quantized stays so where the plan says so, and is dequantized
    elsewhere."""
    module = loader()
    return unpack(keep_packed(module, dtype) if stored_as == PACKED else module)
