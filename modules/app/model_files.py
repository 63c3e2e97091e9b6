"""What a model family is read from: which files, how large the memory plan counts them, and how each part is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from backend.checkpoints.loader import (
    RESTORE,
    assign_tensors,
    load_diffusers_module,
    load_transformers_module,
    read_tensors,
    shard_files,
)
from backend.core.errors import WeightsError
from backend.core.settings import Settings
from backend.core.version import name_and_version
from backend.memory_management import Workload
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.planning.checkpoint_sizes import embedded_sizes, unet_sizes, with_face_restorer, with_prompt_upsampler
from backend.planning.costs import Kind
from backend.planning.model_specs import FAMILIES, Component, ModelSizes, in_precision
from backend.weights.resolver import EMBEDDED, resolve_model
from modules.detection.registry import detector_parameters, find_detectors
from modules.diffusion.base import DiffusionService
from modules.extension_optimizer import select
from modules.families.family import Family, read_family, read_json
from modules.families.flux1.single_file import is_original_layout, to_diffusers, transformer_config
from modules.families.stable_diffusion.single_file import kind_of, load_part
from modules.output.image_writer import ModelInfo
from modules.prompting.prompt_upsampler import MODEL, find_prompt_upsampler
from modules.upscaling.discovery import (
    FACE_RESTORER,
    cached_as,
    find_face_restorer,
    find_upscalers,
    upscaler_parameters,
)

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""What the memory plan calls them."""
HASHED_BYTES = 2**28
"""Only files up to this size are hashed at set-up; a model hash is not worth minutes of reading 24 GB twice."""


@dataclass(frozen=True)
class Files:
    """Where everything is read from; what no stage uses is None.

    ``checkpoint`` is a single file: of Flux in place of ``parts/transformer``, of SDXL and SD 1.5 in place of the
    weights of all parts.
    """

    parts: Path
    checkpoint: Path | None
    upscalers: Mapping[str, Path]
    detectors: Mapping[str, Path]
    face_restorer: Path | None = None
    prompt_upsampler: Path | None = None

    @property
    def is_embedded(self) -> bool:
        return self.parts.parent.name == EMBEDDED and not self.checkpoint

    @cached_property
    def family(self) -> Family:
        family = read_family(self.parts)
        if not self.checkpoint:
            return family
        names = tensor_names(self.checkpoint)
        kind = kind_of(names) or "flux"
        if kind != family.kind:
            raise WeightsError(
                f"{self.checkpoint.name} holds a model of the family {kind}, but 'base_model' names one of "
                f"{family.kind}; change one of them"
            )
        if kind != "flux":
            return replace(family, name=self.checkpoint.stem)
        guided = any("guidance" in name for name in names)
        return replace(family, name=self.checkpoint.stem, distilled_guidance=guided, steps=28 if guided else 4)

    @property
    def cached_upscalers(self) -> dict[str, str]:
        """By name what the model cache calls each."""
        return cached_as(tuple(self.upscalers))

    def sizes(self, dtype: torch.dtype = torch.float32, upscaler_dtype: torch.dtype = torch.float32) -> ModelSizes:
        """What the memory plan counts with, without what no stage uses: UNets and our own Flux as their files are;
        any other Flux as FLUX.1."""
        family, drawing, upscaling = self.family, DTYPES[dtype], DTYPES[upscaler_dtype]
        if family.kind != "flux":
            sizes = unet_sizes(self.parts, FAMILIES[family.kind], drawing, upscaling)
            afterwards = (*self.upscalers.values(), *self.detectors.values())
            if afterwards and all(
                path.parent.name == EMBEDDED for path in afterwards
            ):  # smaller ones than the family counts with
                own = embedded_sizes(afterwards[0].parent, upscaler=upscaling).costs
                sizes = replace(sizes, costs={**sizes.costs, "detect": own["detect"], "upscale": own["upscale"]})
        elif self.is_embedded:
            sizes = embedded_sizes(self.parts.parent, drawing, upscaling)
        else:
            sizes = in_precision(
                FAMILIES["flux-dev" if family.distilled_guidance else "flux-schnell"], drawing, upscaling
            )
        unused = [name for name, file in (("upscaler", self.upscalers), ("detectors", self.detectors)) if not file]
        components = {name: component for name, component in sizes.components.items() if name not in unused}
        if self.detectors:
            components["detectors"] = Component(sum(map(detector_parameters, self.detectors.values())), "fp32")
        if self.upscalers:
            components["upscaler"] = Component(sum(map(upscaler_parameters, self.upscalers.values())), upscaling)
        sizes = replace(sizes, components=components)
        if self.face_restorer:
            sizes = with_face_restorer(sizes, upscaler_parameters(self.face_restorer))
        return (
            with_prompt_upsampler(sizes, self.prompt_upsampler, sizes.components[sizes.denoiser].dtype)
            if self.prompt_upsampler
            else sizes
        )

    def workload(self, settings: Settings) -> Workload:
        """The prediction that is planned for: one picture of the native size, one detail, enlarged by 2, as far as
        there are stages for it."""
        side = self.family.native
        return Workload(
            side,
            side,
            detail_crop=side if self.detectors else 0,
            scale=2 if self.upscalers else 1,
            upscale_tile=settings.upscale_tile_size,
        )

    def kinds(self, planned: Mapping[str, Kind]) -> dict[str, Kind]:
        """How every model of the cache lives: as planned, each detector and each upscaler as all of them."""
        upscalers = dict.fromkeys(self.cached_upscalers.values(), planned.get("upscaler", "resident"))
        return {**planned, **upscalers, **dict.fromkeys(self.detectors, planned.get("detectors", "resident"))}

    def loaders(self, dtype: torch.dtype, upscaler_dtype: torch.dtype, tile: int) -> dict[str, Callable[[], nn.Module]]:
        """How every model is read, by its name in the cache. With ``tile`` the autoencoder works in tiles of so many
        pixels."""
        flux = self.family.kind == "flux"
        second = T5EncoderModel if flux else CLIPTextModelWithProjection
        encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": second}
        loaders: dict[str, Callable[[], nn.Module]] = {
            name: partial(self.load_part, name, encoders[name], dtype) for name in self.family.encoders
        }
        loaders[self.family.denoiser] = (
            partial(self.load_transformer, dtype)
            if flux
            else partial(self.load_part, "unet", UNet2DConditionModel, dtype)
        )
        loaders["vae"] = partial(self.load_autoencoder, dtype, tile)
        for name, cached in self.cached_upscalers.items():
            loaders[cached] = partial(load_upscaler, self.upscalers[name], upscaler_dtype)
        if self.face_restorer:
            loaders[FACE_RESTORER] = partial(load_restorer, self.face_restorer)
        if self.prompt_upsampler:
            loaders[MODEL] = partial(load_language_model, self.prompt_upsampler, dtype)
        return loaders

    def diffusion_service(
        self, models: ModelCache, dtype: torch.dtype, fallback: OomFallback, prompt_cache_entries: int
    ) -> DiffusionService:
        """What draws with this family's models."""
        parts, family = self.parts, self.family
        clip = CLIPTokenizer.from_pretrained(parts / "tokenizer", local_files_only=True)
        if family.kind == "flux":
            from modules.families.flux1.service import FluxService

            scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(parts / "scheduler", local_files_only=True)
            t5 = T5TokenizerFast.from_pretrained(parts / "tokenizer_2", local_files_only=True)
            return FluxService(models, family, scheduler, (clip, t5), dtype, fallback, prompt_cache_entries)
        from modules.families.stable_diffusion.service import StableDiffusionService

        tokenizers = (
            clip,
            *(CLIPTokenizer.from_pretrained(parts / "tokenizer_2", local_files_only=True) for _ in family.encoders[1:]),
        )
        configuration = read_json(parts / "scheduler" / "scheduler_config.json")
        zero = family.kind == "sdxl" and bool(
            read_json(parts / "model_index.json").get("force_zeros_for_empty_prompt", True)
        )
        return StableDiffusionService(
            models, family, configuration, tokenizers, dtype, fallback, prompt_cache_entries, zero
        )

    def denoiser_files(self) -> list[Path]:
        return [self.checkpoint] if self.checkpoint else shard_files(self.parts / self.family.denoiser)

    def load_part(self, name: str, kind: Any, dtype: torch.dtype) -> nn.Module:
        """A text encoder, a UNet or an autoencoder, of this class."""
        if self.checkpoint and self.family.kind != "flux":
            return load_part(self.checkpoint, name, kind, self.parts / name, dtype)
        load = load_transformers_module if name.startswith("text_encoder") else load_diffusers_module
        return load(kind, self.parts / name, dtype)

    def load_autoencoder(self, dtype: torch.dtype, tile: int) -> nn.Module:
        """The autoencoder; with ``tile`` it works in tiles of so many pixels a side. One that overflows in fp16 is
        read in fp32."""
        if dtype == torch.float16 and read_json(self.parts / "vae" / "config.json").get("force_upcast"):
            dtype = torch.float32
        vae: Any = self.load_part("vae", AutoencoderKL, dtype)
        if tile:
            vae.enable_tiling()
            vae.tile_sample_min_size = tile
            vae.tile_latent_min_size = tile // self.family.latent_factor
        module: nn.Module = vae
        return module

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

    def model_info(self) -> ModelInfo:
        files = self.denoiser_files()
        small = len(files) == 1 and files[0].stat().st_size <= HASHED_BYTES
        return ModelInfo(
            self.family.name,
            hashlib.sha256(files[0].read_bytes()).hexdigest()[:10] if small else "",
            name_and_version(),
        )


def find_files(settings: Settings) -> Files:
    """What the settings and the enabled stages ask for. Raises :class:`WeightsError` for what is not there."""
    unused = select(settings).unused_models
    upscalers = {} if "upscaler" in unused else find_upscalers(settings)
    restorer = None if "face_restorer" in unused else find_face_restorer(settings)
    detectors = {} if "detectors" in unused and not restorer else find_detectors(settings)
    found = resolve_model(settings)
    if found.is_dir():
        files = Files(found, None, upscalers, detectors)
    elif settings.base_model:
        files = Files(resolve_model(replace(settings, model=settings.base_model)), found, upscalers, detectors)
    elif kind_of(tensor_names(found)):
        raise WeightsError(
            f"{found.name} says nothing of its shape; name a folder of its family (scripts/fetch-weights --only SDXL) "
            "in 'base_model'"
        )
    else:
        raise WeightsError(
            f"{found.name} holds a transformer only; name a folder with its text encoders, tokenizers, vae and "
            "scheduler in 'base_model'"
        )
    upsampler = None if "prompt_upsampler" in unused else find_prompt_upsampler(settings, files.is_embedded)
    return replace(files, face_restorer=restorer, prompt_upsampler=upsampler)


def tensor_names(file: Path) -> list[str]:
    """By the header alone. Raises :class:`WeightsError` for a damaged file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError):
        raise WeightsError(f"{file.name} is damaged or cut off; {RESTORE}") from None


def load_upscaler(path: Path, dtype: torch.dtype) -> nn.Module:
    from modules.upscaling.tiled import load_upscaler_network

    return load_upscaler_network(path, dtype)


def load_restorer(path: Path) -> nn.Module:
    from modules.face_restoration.network import load_face_restorer

    return load_face_restorer(path)


def load_language_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    from backend.llm.language_model import load_causal_network

    return load_causal_network(folder, dtype)
