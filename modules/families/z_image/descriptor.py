"""How Z-Image is recognized, and where its parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from backend.checkpoints.config import Config
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import FamilyInputs, ModelProfile
from modules.families.autoencoder import block_channels
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.qwen3 import layer_count
from modules.families.scheduler import flow_scheduler, says, scheduler_of
from modules.families.source import Source
from modules.families.text_writer import TextWriter, qwen3_writer
from modules.families.z_image.parts import BASE_SHIFT, PARTS, TURBO_SHIFT, flow
from modules.families.z_image.spec import KNOWN_MODELS, z_image_spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.diffusion.base import DiffusionService

TOKENS = 512
OMNI = "Z-Image Omni, which reads pictures with SigLIP"
READS_PICTURES = ("siglip_pad_token",)


class ZImage(FamilyDescriptor):
    """Turbo is distilled: eight steps, without guidance. The base model takes fifty, with a negative prompt; the
    tensors of both have the same shapes."""

    name = "z-image"
    inputs = FamilyInputs(
        label="Z-Image",
        negative_prompt=True,
        negative_above=0,
        no_go_fast="no step of Z-Image is skipped",
        samplers=("Euler",),
    )
    parts = PARTS

    def detect(self, source: Source) -> Match | NoMatch:
        if source.file:
            if not any(PARTS["transformer"].prefixes(source.tensors)):
                return NoMatch()
            return NoMatch(OMNI) if source.shape(PARTS["transformer"], *READS_PICTURES) else Match()
        if not source.has("transformer"):
            return Match() if source.pipeline_class.startswith("ZImage") else NoMatch()
        config = source.config("transformer")
        if config.get("_class_name") != "ZImageTransformer2DModel":
            return NoMatch()
        return NoMatch(OMNI) if config.get("siglip_feat_dim") else Match()

    def profile(self, source: Source) -> ModelProfile:
        if source.file:
            source.require(PARTS)
        vae = source.part("vae", PARTS).config
        turbo = is_turbo(source)
        takes = replace(self.inputs, negative_prompt=False, guidance=None) if turbo else self.inputs
        return ModelProfile(
            name=source.name,
            native=int(vae.get("sample_size", 1024)),
            tokens=TOKENS,
            latent_factor=2 ** (len(block_channels(vae)) - 1),
            latent_channels=int(vae.get("latent_channels", 16)),
            steps=8 if turbo else 50,
            guidance=0.0 if turbo else 4.0,
            inputs=takes,
            encoders=("text_encoder",),
        )

    def spec(self, source: Source, dtype: str) -> ModelSpec:
        return z_image_spec(source, self.profile(source), dtype)

    def load(self, source: Source, component: str, dtype: torch.dtype) -> nn.Module:
        from modules.families.z_image.loading import load_component

        return load_component(source, component, dtype)

    def service(
        self,
        source: Source,
        models: ModelCache,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int,
    ) -> DiffusionService:
        from modules.families.qwen3_chat import load_qwen3_chat
        from modules.families.z_image.service import ZImageService

        profile = self.profile(source)
        chat = load_qwen3_chat(source, PARTS, profile.tokens, thinking=True)
        scheduler = flow_scheduler(flow_config(source))
        return ZImageService(models, profile, scheduler, chat, dtype, fallback, prompt_cache_entries)

    def text_writer(self, source: Source) -> TextWriter | None:
        return qwen3_writer(source, PARTS, layer_count(source.part("text_encoder", PARTS).config) - 1)

    def known_models(self) -> Mapping[str, ModelSpec]:
        return KNOWN_MODELS


Z_IMAGE = ZImage()


def is_turbo(source: Source) -> bool:
    """By the model's own scheduler, which moves the noise levels less than that of the base model. A single file has
    none: there its name or its metadata says "turbo"."""
    if source.file:
        return says(source, "turbo")
    return float(flow_config(source).get("shift", TURBO_SHIFT)) < (TURBO_SHIFT + BASE_SHIFT) / 2


def flow_config(source: Source) -> Config:
    """The configuration of the scheduler. Raises :class:`backend.core.errors.WeightsError` where it is damaged."""
    if source.file:
        return scheduler_of(None, flow(TURBO_SHIFT if is_turbo(source) else BASE_SHIFT))
    return scheduler_of(source.path, {})
