"""How FLUX.2 klein is recognized, and where its parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from backend.planning.model_specs import ModelSpec
from modules.diffusion.canvas import AREAS
from modules.diffusion.profile import FamilyInputs, HostDefaults, ModelProfile
from modules.families.autoencoder import block_channels
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.flux2_klein.parts import FLOW, MOST_REFERENCES, PARTS, TEXT_LAYERS
from modules.families.flux2_klein.spec import KNOWN_MODELS, klein_spec
from modules.families.scheduler import SCHEDULER_FILE, flow_scheduler, says, scheduler_of
from modules.families.source import Source
from modules.families.text_writer import TextWriter, qwen3_writer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.diffusion.base import DiffusionService

TOKENS = 512
HOST = HostDefaults(go_fast=False, output_format="jpg", output_quality=95)
DEV = "FLUX.2 dev, whose text encoder is Mistral"
GUIDED = "guidance_in.in_layer.weight", "time_guidance_embed.guidance_embedder.linear_1.weight"
"""A layer that dev's transformer has and klein's has not."""
OF_BASE = r"(^|[^a-z])base([^a-z]|$)|un-?distilled"
"""What names and metadata of files say of the base model, and of models that were made from it."""


class Flux2Klein(FamilyDescriptor):
    """The published klein is distilled: four steps, without guidance. Its base model takes fifty, with a negative
    prompt; the tensors of both have the same shapes."""

    name = "flux2-klein"
    inputs = FamilyInputs(
        label="FLUX.2 klein",
        negative_prompt=True,
        references=(0, MOST_REFERENCES),
        no_go_fast="no step of FLUX.2 klein is skipped",
        areas=(*AREAS, "0.5", "2", "4"),
    )
    parts = PARTS

    def detect(self, source: Source) -> Match | NoMatch:
        if source.file:
            if not any(PARTS["transformer"].prefixes(source.tensors)):
                return NoMatch()
            return NoMatch(DEV) if source.shape(PARTS["transformer"], *GUIDED) else Match()
        if not source.has("transformer"):
            return Match() if source.pipeline_class.startswith("Flux2Klein") else NoMatch()
        config = source.config("transformer")
        if config.get("_class_name") != "Flux2Transformer2DModel":
            return NoMatch()
        return NoMatch(DEV) if config.get("guidance_embeds", True) else Match()

    def profile(self, source: Source) -> ModelProfile:
        if source.file:
            source.require(PARTS)
        vae = source.part("vae", PARTS).config
        distilled = is_distilled(source)
        takes = replace(self.inputs, negative_prompt=False, guidance=None) if distilled else self.inputs
        return ModelProfile(
            name=source.name,
            native=int(vae.get("sample_size", 1024)),
            tokens=TOKENS,
            latent_factor=2 ** (len(block_channels(vae)) - 1),
            latent_channels=int(vae.get("latent_channels", 32)),
            steps=4 if distilled else 50,
            guidance=1.0 if distilled else 4.0,
            inputs=takes,
            host=HOST,
            encoders=("text_encoder",),
        )

    def spec(self, source: Source, dtype: str) -> ModelSpec:
        return klein_spec(source, self.profile(source), dtype)

    def load(self, source: Source, component: str, dtype: torch.dtype) -> nn.Module:
        from modules.families.flux2_klein.loading import load_component

        return load_component(source, component, dtype)

    def service(
        self,
        source: Source,
        models: ModelCache,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int,
    ) -> DiffusionService:
        from modules.families.flux2_klein.service import KleinService
        from modules.families.qwen3_chat import load_qwen3_chat

        profile = self.profile(source)
        folder = source.folder_with(f"scheduler/{SCHEDULER_FILE}")
        chat = load_qwen3_chat(source, PARTS, profile.tokens, thinking=False)
        scheduler = flow_scheduler(scheduler_of(folder, FLOW))
        return KleinService(models, profile, scheduler, chat, dtype, fallback, prompt_cache_entries)

    def text_writer(self, source: Source) -> TextWriter | None:
        return qwen3_writer(source, PARTS, max(TEXT_LAYERS))

    def known_models(self) -> Mapping[str, ModelSpec]:
        return KNOWN_MODELS


FLUX2_KLEIN = Flux2Klein()


def is_distilled(source: Source) -> bool:
    """What the model's own ``model_index.json`` says. A single file has none: there its name or its metadata tells the
    base model."""
    return not says(source, OF_BASE) if source.file else bool(source.index.get("is_distilled", False))
