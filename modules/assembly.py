"""Puts the package together: which files the models are read from, and which stages borrow them, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors import safe_open
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
from transformers.utils.logging import disable_progress_bar

from backend.checkpoint_loader import assign_tensors, load_diffusers_module, load_transformers_module, read_tensors, shard_files
from backend.errors import WeightsError
from backend.families import FAMILIES, ModelSizes, embedded
from backend.flux_checkpoint import is_original_layout, to_diffusers, transformer_config
from backend.memory_management import MemoryPlan, Workload
from backend.model_cache_optimizer import ModelCache
from backend.narrow_storage import FORMATS, store_narrow
from backend.out_of_memory import Ladder
from backend.settings import Settings
from backend.weights import EMBEDDED, resolve_file, resolve_model
from modules.adetailer.detection import load_detector_network, offline_ultralytics
from modules.adetailer.stage import AdetailerStage
from modules.enlarger import Enlarger
from modules.family import Family, read_family
from modules.flux import FluxService
from modules.generate import GenerateStage
from modules.hires import HiresStage
from modules.outputs import ModelInfo
from modules.pipeline import ImagePipeline
from modules.upscale import UpscaleStage
from modules.upscaler import load_upscaler_network

FACE_DETECTORS = ("face_yolov8n.pt", "face_detector.safetensors")
UPSCALERS = ("ESRGAN_4x.pth", "upscaler.safetensors")
"""What "auto" takes, best first: the published models where they lie under ``weights/``, else the embedded ones."""

VERSION = "cog-flux-adetailer 0.1"
HASHED_BYTES = 2**28
"""Only files up to this size are hashed at set-up; a model hash is not worth minutes of reading 24 GB twice."""


@dataclass(frozen=True)
class Assembled:
    family: Family
    pipeline: ImagePipeline
    model: ModelInfo


@dataclass(frozen=True)
class Files:
    """Where everything is read from. ``checkpoint`` is a single file in place of ``parts/transformer``."""

    parts: Path
    checkpoint: Path | None
    upscaler: Path
    face_detector: Path

    @property
    def is_embedded(self) -> bool:
        return self.parts.parent.name == EMBEDDED and not self.checkpoint

    def sizes(self) -> ModelSizes:
        """What the memory plan counts with: our own models as they are, any other as FLUX.1."""
        if self.is_embedded:
            return embedded(self.parts.parent)
        return FAMILIES["flux-dev" if self.family().distilled_guidance else "flux-schnell"]

    def workload(self, settings: Settings) -> Workload:
        """The prediction that is planned for: one picture of the native size, one detail, enlarged by 2."""
        side = self.family().native
        return Workload(side, side, detail_crop=side, scale=2, upscale_tile=settings.tile_size)

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
    """What the settings ask for. Raises :class:`WeightsError` for what is not there."""
    upscaler = resolve_file("upscaler", settings.upscaler, UPSCALERS, settings)
    detector = resolve_file("face_detector", settings.face_detector, FACE_DETECTORS, settings)
    found = resolve_model(settings)
    if found.is_dir():
        return Files(found, None, upscaler, detector)
    if not settings.model_parts:
        raise WeightsError(f"{found.name} holds a transformer only; name a folder with its text encoders, tokenizers, vae and scheduler in 'model_parts'")
    return Files(resolve_model(replace(settings, model=settings.model_parts)), found, upscaler, detector)


def assemble(files: Files, settings: Settings, dtype: torch.dtype, plan: MemoryPlan, models: ModelCache, ladder: Ladder, scratch: Path) -> Assembled:
    """Registers every model with the cache and builds the stages. Reads configurations, but no weights yet.

    ``scratch`` is a writable folder that lives as long as the process.
    """
    offline_ultralytics(scratch / "ultralytics")
    disable_progress_bar()  # a bar for every text encoder would hide our own lines
    family = files.family()
    tile = files.sizes().vae_tile if plan.placements["vae"].tiled else 0
    loaders: dict[str, Callable[[], nn.Module]] = {
        "text_encoder": partial(load_transformers_module, CLIPTextModel, files.parts / "text_encoder", dtype),
        "text_encoder_2": partial(load_transformers_module, T5EncoderModel, files.parts / "text_encoder_2", dtype),
        "transformer": partial(files.load_transformer, dtype),
        "vae": partial(load_autoencoder, files.parts / "vae", dtype, tile),
        "face_detector": partial(load_detector_network, files.face_detector),
        "upscaler": partial(load_upscaler_network, files.upscaler),
    }
    for name, loader in loaders.items():
        stored_as = plan.placements[name].dtype
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
    enlarger = Enlarger(models, files.upscaler.stem, plan.upscale_tile, ladder)
    stages = (
        GenerateStage(flux),
        HiresStage(flux, enlarger),
        AdetailerStage(flux, models, files.face_detector.stem, plan.details_together),
        UpscaleStage(enlarger),
    )
    return Assembled(family, ImagePipeline(stages), files.model_info(family))


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
