"""How SDXL and SD 1.5 are recognized, and where their parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backend.checkpoints.config import read_config
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import FamilyInputs, ModelProfile
from modules.families.autoencoder import block_channels
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.parts import PartKind
from modules.families.source import INDEX, Source
from modules.families.stable_diffusion.detect import what_is
from modules.families.stable_diffusion.known import KNOWN_SD15, KNOWN_SDXL
from modules.families.stable_diffusion.parts import SD15_NOISE, SD15_PARTS, SDXL_NOISE, SDXL_PARTS
from modules.families.stable_diffusion.prediction import noise_config
from modules.families.stable_diffusion.spec import unet_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.diffusion.base import DiffusionService

CLIP_TOKENS = 77


@dataclass(frozen=True)
class StableDiffusion(FamilyDescriptor):
    """One of the two. ``latents`` is the side in latents that its UNet was trained on where a configuration does not
    say; ``empty_is_zero`` whether nothing to avoid is zeros where ``model_index.json`` does not say."""

    name: str
    inputs: FamilyInputs
    noise: Mapping[str, Any]
    encoders: tuple[str, ...]
    latents: int
    guidance: float
    empty_is_zero: bool
    published: Mapping[str, ModelSpec]
    parts: Mapping[str, PartKind] = field(kw_only=True)

    def detect(self, source: Source) -> Match | NoMatch:
        what = what_is(source)
        return Match() if what == self.inputs.label else NoMatch(what)

    def profile(self, source: Source) -> ModelProfile:
        if source.file:
            source.require(self.parts)
        vae, unet = source.part("vae", self.parts).config, source.part("unet", self.parts).config
        factor = 2 ** (len(block_channels(vae)) - 1)
        return ModelProfile(
            name=source.name,
            native=int(unet.get("sample_size", self.latents)) * factor,
            tokens=CLIP_TOKENS,
            latent_factor=factor,
            latent_channels=int(vae.get("latent_channels", 4)),
            steps=30,
            guidance=self.guidance,
            inputs=self.inputs,
            encoders=self.encoders,
            denoiser="unet",
        )

    def spec(self, source: Source, dtype: str) -> ModelSpec:
        return unet_spec(source, self.profile(source), self.parts, dtype)

    def load(self, source: Source, component: str, dtype: torch.dtype) -> nn.Module:
        from modules.families.stable_diffusion.loading import load_component

        return load_component(source.part(component, self.parts), component, dtype)

    def service(
        self,
        source: Source,
        models: ModelCache,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int,
    ) -> DiffusionService:
        from modules.families.stable_diffusion.loading import checked_scheduler, load_tokenizers
        from modules.families.stable_diffusion.service import StableDiffusionService

        described = source.folder_with(INDEX)
        index = read_config(described / INDEX) if described else {}
        return StableDiffusionService(
            models,
            self.profile(source),
            checked_scheduler(noise_config(source, self.noise)),
            load_tokenizers(source, self.parts),
            dtype,
            fallback,
            prompt_cache_entries,
            self.empty_is_zero and bool(index.get("force_zeros_for_empty_prompt", True)),
        )

    def known_models(self) -> Mapping[str, ModelSpec]:
        return self.published


def _inputs(label: str) -> FamilyInputs:
    return FamilyInputs(label=label, negative_prompt=True, solver_schedules=("Simple", "Karras", "Exponential"))


SDXL = StableDiffusion(
    name="sdxl",
    inputs=_inputs("SDXL"),
    parts=SDXL_PARTS,
    noise=SDXL_NOISE,
    encoders=("text_encoder", "text_encoder_2"),
    latents=128,
    guidance=5.0,
    empty_is_zero=True,
    published=KNOWN_SDXL,
)
SD15 = StableDiffusion(
    name="sd15",
    inputs=_inputs("SD 1.5"),
    parts=SD15_PARTS,
    noise=SD15_NOISE,
    encoders=("text_encoder",),
    latents=64,
    guidance=7.5,
    empty_is_zero=False,
    published=KNOWN_SD15,
)
