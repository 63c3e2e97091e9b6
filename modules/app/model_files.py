"""Which models a service works with: the one that generates, and upscalers, detectors, a face restorer and a prompt
upsampler beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backend.checkpoints.folder_files import is_pipeline, shard_files
from backend.core.settings import Settings
from backend.core.units import parse_bytes
from backend.core.version import name_and_version
from backend.memory_management import Workload
from backend.offload.quantized_cache import content_key
from backend.planning.companions import (
    with_detectors,
    with_face_restorer,
    with_prompt_upsampler,
    with_safety_checker,
    with_upscaler,
)
from backend.planning.costs import Kind
from backend.planning.model_specs import ModelSpec
from backend.weights.found_files import FoundFiles
from backend.weights.resolver import EMBEDDED, resolve_base, resolve_model
from modules.detection.registry import detector_parameters, find_detectors
from modules.detection.sam2 import MODEL as SAM2
from modules.detection.sam2 import find_sam2
from modules.diffusion.profile import ModelProfile
from modules.extension_optimizer import Selection, select
from modules.face_restoration.discovery import FACE_RESTORER, find_face_restorer
from modules.families.parts import folder_of_parts
from modules.families.registry import FAMILIES, Families, FoundModel, identify
from modules.families.source import Source
from modules.families.text_writer import TextWriter
from modules.lora.files.references import LOCAL
from modules.lora.files.sources import FOLDER as LORA_FOLDER
from modules.lora.files.sources import LoraSources
from modules.output.image_writer import ModelInfo
from modules.prompting.prompt_upsampler import MODEL, find_prompt_upsampler
from modules.safety.discovery import SAFETY_CHECKER, CheckerSource, find_safety_checker
from modules.upscaling.discovery import (
    FIRST,
    cached_as,
    find_upscalers,
    upscaler_parameters,
)

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""What the memory plan calls them."""
HASHED_BYTES = 2**28
"""Only files up to this size are hashed at set-up; a model hash is not worth minutes of reading 24 GB twice."""


@dataclass(frozen=True)
class Files:
    """Where everything is read from; what no stage uses is None or empty."""

    model: FoundModel
    upscalers: FoundFiles
    detectors: FoundFiles
    face_restorer: Path | None = None
    prompt_upsampler: Path | TextWriter | None = None
    safety_checker: CheckerSource | None = None
    sam2: Path | None = None

    @property
    def is_embedded(self) -> bool:
        return is_embedded(self.model.source)

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why files that no setting names cannot be used, by the names that inputs would give them."""
        return {**self.upscalers.left_out, **self.detectors.left_out}

    @property
    def optional_detectors(self) -> frozenset[str]:
        """Those that no setting names."""
        return frozenset(list(self.detectors)[1:])

    @property
    def profile(self) -> ModelProfile:
        return self.model.profile

    @property
    def missing_models(self) -> frozenset[str]:
        """The optional models, by their names in the memory plan, that have no file."""
        files = {
            FIRST: self.upscalers,
            "detectors": self.detectors,
            FACE_RESTORER: self.face_restorer,
            MODEL: self.prompt_upsampler,
            SAFETY_CHECKER: self.safety_checker,
        }
        return frozenset(model for model, file in files.items() if not file)

    @property
    def cached_upscalers(self) -> dict[str, str]:
        """By name what the model cache calls each."""
        return cached_as(tuple(self.upscalers))

    def spec(self, dtype: torch.dtype = torch.float32, upscaler_dtype: torch.dtype = torch.float32) -> ModelSpec:
        """What the memory plan counts with: the model and all that works beside it, without what no stage uses."""
        computing, upscaling = DTYPES[dtype], DTYPES[upscaler_dtype]
        spec = self.model.spec(computing)
        if self.detectors:
            small = all(path.parent.name == EMBEDDED for path in self.detectors.values())
            count = sum(map(detector_parameters, self.detectors.values()))
            count += self.sam2.stat().st_size // 4 if self.sam2 else 0  # in float32
            spec = with_detectors(spec, count, small)
        if self.upscalers:
            files = list(self.upscalers.values())
            small_one = files[0] if all(path.parent.name == EMBEDDED for path in files) else None
            spec = with_upscaler(spec, sum(map(upscaler_parameters, files)), upscaling, small_one)
        if self.face_restorer:
            spec = with_face_restorer(spec, upscaler_parameters(self.face_restorer))
        if self.safety_checker:
            spec = with_safety_checker(spec, self.safety_checker.parameters)
        if isinstance(self.prompt_upsampler, TextWriter):
            return self.prompt_upsampler.added_to(spec, MODEL, computing)
        return with_prompt_upsampler(spec, self.prompt_upsampler, computing) if self.prompt_upsampler else spec

    def workload(self, settings: Settings) -> Workload:
        """The prediction that is planned for: one picture of the native size, one that the model looks at where it
        takes any, one detail, upscaled by 2, as far as there are stages for it."""
        side, (least, most) = self.profile.native, self.profile.inputs.references
        return Workload(
            side,
            side,
            references=min(1, most - least),
            detail_crop=side if self.detectors else 0,
            scale=2 if self.upscalers else 1,
            upscale_tile=settings.upscale_tile_size,
            cached_prompts=settings.prompt_cache_entries,
        )

    def kinds(self, planned: Mapping[str, Kind]) -> dict[str, Kind]:
        """How every model of the cache lives: as planned, each detector and each upscaler as all of them."""
        upscalers = dict.fromkeys(self.cached_upscalers.values(), planned.get("upscaler", "resident"))
        return {**planned, **upscalers, **dict.fromkeys((*self.detectors, SAM2), planned.get("detectors", "resident"))}

    def loaders(self, dtype: torch.dtype, upscaler_dtype: torch.dtype, tile: int) -> dict[str, Callable[[], nn.Module]]:
        """How every model is read, by its name in the cache. With ``tile`` the autoencoder works in tiles of so many
        pixels."""
        profile = self.profile
        loaders: dict[str, Callable[[], nn.Module]] = {
            name: partial(self.load, name, dtype) for name in (*profile.encoders, profile.denoiser)
        }
        loaders["vae"] = partial(self.load_autoencoder, dtype, tile)
        for name, cached in self.cached_upscalers.items():
            loaders[cached] = partial(load_upscaler, self.upscalers[name], upscaler_dtype)
        if self.face_restorer:
            loaders[FACE_RESTORER] = partial(load_restorer, self.face_restorer)
        if isinstance(self.prompt_upsampler, TextWriter):
            loaders[MODEL] = partial(self.prompt_upsampler.load, dtype)
        elif self.prompt_upsampler:
            loaders[MODEL] = partial(load_language_model, self.prompt_upsampler, dtype)
        return loaders

    def content_key(self, *details: str) -> str:
        """A name for what is made from the model's files in the way that ``details`` say: see
        :func:`backend.offload.quantized_cache.content_key`."""
        return content_key(self.model.files or [self.model.source.path], *details)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """One component of the model that generates."""
        return self.model.family.load(self.model.source, component, dtype)

    def load_autoencoder(self, dtype: torch.dtype, tile: int) -> nn.Module:
        """The autoencoder; with ``tile`` it works in tiles of so many pixels a side."""
        vae: Any = self.load("vae", dtype)
        if tile:
            vae.enable_tiling()
            vae.tile_sample_min_size = tile
            vae.tile_latent_min_size = tile // self.profile.latent_factor
        module: nn.Module = vae
        return module

    def model_info(self) -> ModelInfo:
        source = self.model.source
        files = [source.file] if source.file else shard_files(source.path / self.profile.denoiser)
        small = len(files) == 1 and files[0].stat().st_size <= HASHED_BYTES
        return ModelInfo(
            self.profile.name,
            hashlib.sha256(files[0].read_bytes()).hexdigest()[:10] if small else "",
            name_and_version(),
        )


def is_embedded(source: Source) -> bool:
    return not source.file and source.path.parent.name == EMBEDDED


MOST_LORA_BYTES = 10**9
"""Of the device that the plan reserves for LoRA files where no setting says it."""


def lora_bytes(settings: Settings, device_bytes: int, parameter_bytes: int) -> int:
    """What of a device's memory is for LoRA files, on a device that computes with parameters of so many bytes; files
    mostly have 2. Raises :class:`backend.core.errors.SettingsError`."""
    if settings.lora_memory != "auto":
        return parse_bytes(settings.lora_memory)
    most = min(MOST_LORA_BYTES, device_bytes // 16)
    if any(source != LOCAL for source in settings.lora_sources):
        return most
    there = sum(file.stat().st_size for file in lora_sources(settings).names().values())
    return min(most, there * parameter_bytes // 2)


def lora_sources(settings: Settings) -> LoraSources:
    """Where the LoRA of a request may come from."""
    return LoraSources(settings.lora_sources, settings.weights_path / LORA_FOLDER)


def find_files(settings: Settings, selection: Selection | None = None, families: Families = FAMILIES) -> Files:
    """What the settings and the enabled features ask for; ``selection`` is :func:`select` of the settings, ``families``
    are those that the model may be of.

    Raises :class:`backend.core.errors.WeightsError` for what is missing.
    """
    selection = selection or select(settings)
    unused = selection.unused_models
    upscalers = FoundFiles("upscaler") if FIRST in unused else find_upscalers(settings)
    restorer = None if FACE_RESTORER in unused else find_face_restorer(settings)
    if not restorer:  # then the detectors may be needed by nothing
        unused = selection.without({FACE_RESTORER}).unused_models
    detectors = FoundFiles("detector") if "detectors" in unused else find_detectors(settings)
    model = identify(find_source(settings), families)
    upsampler = (
        None if MODEL in unused else find_prompt_upsampler(settings, is_embedded(model.source), model.text_writer)
    )
    needs_check = model.profile.safety_check or settings.profile == "hosted"
    checker = None if SAFETY_CHECKER in unused else find_safety_checker(settings, needs_check)
    sam2 = find_sam2(settings) if detectors else None
    return Files(model, upscalers, detectors, restorer, upsampler, checker, sam2)


def find_source(settings: Settings) -> Source:
    """Where the settings ``model`` and, for what it lacks, ``base_model`` lie."""
    path = resolve_model(settings)
    base = resolve_base(settings) if settings.base_model and not is_pipeline(path) else None
    beside = folder_of_parts(path) if path.is_file() and not base else None
    return Source(path, base, beside, settings.weights_path)


def load_upscaler(path: Path, dtype: torch.dtype) -> nn.Module:
    from modules.upscaling.tiled import load_upscaler_network

    return load_upscaler_network(path, dtype)


def load_restorer(path: Path) -> nn.Module:
    from modules.face_restoration.network import load_face_restorer

    return load_face_restorer(path)


def load_language_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    from backend.llm.language_model import load_causal_network

    return load_causal_network(folder, dtype)
