"""Puts the package together: which files the models are read from, and which stages borrow them, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors import safe_open
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
from transformers.utils.logging import disable_progress_bar

from backend.checkpoint_loader import assign_tensors, load_diffusers_module, load_transformers_module, read_tensors, shard_files
from backend.cost_model import Kind
from backend.errors import WeightsError
from backend.families import FAMILIES, Component, ModelSizes, embedded, with_prompt_upsampler
from backend.flux_checkpoint import is_original_layout, to_diffusers, transformer_config
from backend.memory_management import MemoryPlan, Workload
from backend.model_cache_optimizer import ModelCache
from backend.narrow_storage import FORMATS, store_narrow
from backend.out_of_memory import Ladder
from backend.settings import Settings
from backend.timeline import Timeline
from backend.weights import EMBEDDED, resolve_model
from modules.adetailer.detector_names import detector_parameters, find_detectors
from modules.adetailer.vocabulary import Vocabulary
from modules.extension_optimizer import Selection, select
from modules.family import Family, read_family
from modules.flux import FluxService
from modules.generate import GenerateStage
from modules.outputs import ModelInfo
from modules.pipeline import ImagePipeline, Stage
from modules.prompt_upsampler import MODEL, PromptUpsampler, find_prompt_upsampler
from modules.upscaler_names import FIRST, cached_as, find_upscalers, upscaler_parameters

if TYPE_CHECKING:
    from modules.adetailer.detectors import Detectors

VERSION = "cog-flux-adetailer 0.1"
HASHED_BYTES = 2**28
"""Only files up to this size are hashed at set-up; a model hash is not worth minutes of reading 24 GB twice."""


@dataclass(frozen=True)
class Assembled:
    family: Family
    upsampler: PromptUpsampler | None
    pipeline: ImagePipeline
    model: ModelInfo
    detectors: Mapping[str, Vocabulary]
    """By name, the default one first. Filled as the detectors are read."""
    upscalers: tuple[str, ...]
    """Their names, the default one first."""


@dataclass(frozen=True)
class Files:
    """Where everything is read from. ``checkpoint`` is a single file in place of ``parts/transformer``; what no stage uses is None."""

    parts: Path
    checkpoint: Path | None
    upscalers: Mapping[str, Path]
    detectors: Mapping[str, Path]
    prompt_upsampler: Path | None = None

    @property
    def is_embedded(self) -> bool:
        return self.parts.parent.name == EMBEDDED and not self.checkpoint

    def sizes(self) -> ModelSizes:
        """What the memory plan counts with: our own models as they are, any other as FLUX.1; without what no stage uses."""
        known = FAMILIES["flux-dev" if self.family().distilled_guidance else "flux-schnell"]
        sizes = embedded(self.parts.parent) if self.is_embedded else known
        unused = [name for name, file in (("upscaler", self.upscalers), ("detectors", self.detectors)) if not file]
        components = {name: component for name, component in sizes.components.items() if name not in unused}
        if self.detectors:
            components["detectors"] = Component(sum(map(detector_parameters, self.detectors.values())), "fp32")
        if further := list(self.upscalers.values())[1:]:
            first = components["upscaler"]
            components["upscaler"] = replace(first, parameters=first.parameters + sum(map(upscaler_parameters, further)))
        sizes = replace(sizes, components=components)
        return with_prompt_upsampler(sizes, self.prompt_upsampler, sizes.components["transformer"].dtype) if self.prompt_upsampler else sizes

    def workload(self, settings: Settings) -> Workload:
        """The prediction that is planned for: one picture of the native size, one detail, enlarged by 2, as far as there are stages for it."""
        side = self.family().native
        return Workload(side, side, detail_crop=side if self.detectors else 0, scale=2 if self.upscalers else 1, upscale_tile=settings.tile_size)

    def kinds(self, planned: Mapping[str, Kind]) -> dict[str, Kind]:
        """How every model of the cache lives: as planned, each detector and each upscaler as all of them."""
        upscalers = dict.fromkeys(cached_as(tuple(self.upscalers)).values(), planned.get("upscaler", "resident"))
        return {**planned, **upscalers, **dict.fromkeys(self.detectors, planned.get("detectors", "resident"))}

    def transformer_files(self) -> list[Path]:
        return [self.checkpoint] if self.checkpoint else shard_files(self.parts / "transformer")

    def load_transformer(self, dtype: torch.dtype) -> nn.Module:
        if not self.checkpoint:
            return load_diffusers_module(FluxTransformer2DModel, self.parts / "transformer", dtype)
        tensors = read_tensors([self.checkpoint], dtype)
        if is_original_layout(tensors):
            tensors = to_diffusers(tensors)
        with torch.device("meta"):
            transformer: nn.Module = FluxTransformer2DModel(**transformer_config(tensors))
        assign_tensors(transformer, tensors, self.checkpoint.name)
        return transformer

    def family(self) -> Family:
        family = read_family(self.parts)
        if not self.checkpoint:
            return family
        with safe_open(self.checkpoint, framework="pt") as opened:
            guided = any("guidance" in name for name in opened.keys())
        return replace(family, name=self.checkpoint.stem, distilled_guidance=guided)

    def model_info(self, family: Family) -> ModelInfo:
        files = self.transformer_files()
        small = len(files) == 1 and files[0].stat().st_size <= HASHED_BYTES
        return ModelInfo(family.name, hashlib.sha256(files[0].read_bytes()).hexdigest()[:10] if small else "", VERSION)


def find_files(settings: Settings) -> Files:
    """What the settings and the enabled stages ask for. Raises :class:`WeightsError` for what is not there."""
    unused = select(settings).unused_models
    upscalers = {} if "upscaler" in unused else find_upscalers(settings)
    detectors = {} if "detectors" in unused else find_detectors(settings)
    found = resolve_model(settings)
    if found.is_dir():
        files = Files(found, None, upscalers, detectors)
    elif settings.model_parts:
        files = Files(resolve_model(replace(settings, model=settings.model_parts)), found, upscalers, detectors)
    else:
        raise WeightsError(f"{found.name} holds a transformer only; name a folder with its text encoders, tokenizers, vae and scheduler in 'model_parts'")
    upsampler = None if "prompt_upsampler" in unused else find_prompt_upsampler(settings, files.is_embedded)
    return replace(files, prompt_upsampler=upsampler)


def assemble(
    files: Files, settings: Settings, dtype: torch.dtype, plan: MemoryPlan, models: ModelCache, ladder: Ladder, scratch: Path, timeline: Timeline | None = None
) -> Assembled:
    """Registers every model with the cache and builds the enabled stages. Reads configurations, but no weights yet.

    ``scratch`` is a writable folder that lives as long as the process; ``timeline`` gets the time of every stage's imports.
    """
    disable_progress_bar()  # a bar for every text encoder would hide our own lines
    family = files.family()
    tile = files.sizes().vae_tile if plan.placements["vae"].tiled else 0
    loaders: dict[str, Callable[[], nn.Module]] = {
        "text_encoder": partial(load_transformers_module, CLIPTextModel, files.parts / "text_encoder", dtype),
        "text_encoder_2": partial(load_transformers_module, T5EncoderModel, files.parts / "text_encoder_2", dtype),
        "transformer": partial(files.load_transformer, dtype),
        "vae": partial(load_autoencoder, files.parts / "vae", dtype, tile),
    }
    for name, cached in cached_as(tuple(files.upscalers)).items():
        loaders[cached] = partial(load_upscaler, files.upscalers[name])
    if files.prompt_upsampler:
        loaders[MODEL] = partial(load_language_model, files.prompt_upsampler, dtype)
    for name, loader in loaders.items():
        stored_as = plan.placements[FIRST if name.startswith(FIRST) else name].dtype
        models.register(name, partial(load_narrow, loader, stored_as, dtype) if stored_as in FORMATS else loader)
    flux = FluxService(
        models,
        family,
        FlowMatchEulerDiscreteScheduler.from_pretrained(files.parts / "scheduler", local_files_only=True),
        CLIPTokenizer.from_pretrained(files.parts / "tokenizer", local_files_only=True),
        T5TokenizerFast.from_pretrained(files.parts / "tokenizer_2", local_files_only=True),
        dtype,
        ladder,
        settings.prompt_cache_entries,
    )
    extensions = select(settings)
    extensions.bring(timeline or Timeline(), scratch)
    detectors = register_detectors(files, settings, models, ladder)
    stages = [GenerateStage(flux), *optional_stages(files, extensions, flux, models, detectors, plan, ladder)]
    upsampler = PromptUpsampler(models, files.prompt_upsampler, family.tokens, ladder) if files.prompt_upsampler else None
    return Assembled(family, upsampler, ImagePipeline(stages), files.model_info(family), detectors.vocabularies if detectors else {}, tuple(files.upscalers))


def optional_stages(
    files: Files, extensions: Selection, flux: FluxService, models: ModelCache, detectors: Detectors | None, plan: MemoryPlan, ladder: Ladder
) -> list[Stage]:
    """The enabled stages after the first, in order. What is disabled is not imported."""
    stages: list[Stage] = []
    if files.upscalers:
        from modules.enlarger import Enlarger

        enlarger = Enlarger(models, cached_as(tuple(files.upscalers)), plan.upscale_tile, ladder)
    if "hires" in extensions.enabled:
        from modules.hires import HiresStage

        stages.append(HiresStage(flux, enlarger))
    if detectors:
        from modules.adetailer.stage import AdetailerStage

        stages.append(AdetailerStage(flux, detectors, plan.details_together))
    if "upscale" in extensions.enabled:
        from modules.upscale import UpscaleStage

        stages.append(UpscaleStage(enlarger))
    return stages


def register_detectors(files: Files, settings: Settings, models: ModelCache, ladder: Ladder) -> Detectors | None:
    if not files.detectors:
        return None
    from modules.adetailer.detectors import Detectors
    from modules.adetailer_patch import redirect_detectors

    redirect_detectors(settings)  # for other people's code, which asks for them by name
    return Detectors(files.detectors, settings, models, ladder)


def load_upscaler(path: Path) -> nn.Module:
    from modules.upscaler import load_upscaler_network

    return load_upscaler_network(path)


def load_language_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    from backend.language_model import load_causal_network

    return load_causal_network(folder, dtype)


def load_narrow(loader: Callable[[], nn.Module], stored_as: str, dtype: torch.dtype) -> nn.Module:
    """What ``loader`` gives, its blocks rounded."""
    return store_narrow(loader(), stored_as, dtype)


def load_autoencoder(folder: Path, dtype: torch.dtype, tile: int) -> nn.Module:
    """The autoencoder; with ``tile`` it works in tiles of so many pixels a side."""
    vae: Any = load_diffusers_module(AutoencoderKL, folder, dtype)
    if tile:
        vae.enable_tiling()
        vae.tile_sample_min_size = tile
        vae.tile_latent_min_size = tile // 2 ** (len(vae.config.block_out_channels) - 1)
    module: nn.Module = vae
    return module
