"""How FLUX.1 is recognized, and where its parts are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from backend.checkpoints.config import Config
from backend.core.errors import WeightsError
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import FamilyInputs, ModelProfile
from modules.families.autoencoder import block_channels
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.flux1.parts import PARTS
from modules.families.flux1.spec import KNOWN_MODELS, flux_spec
from modules.families.flux1.variant import check_widths, flow_config, is_guided, remarks, variant
from modules.families.source import Source

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.diffusion.base import DiffusionService

TRANSFORMER_CLASSES = {
    "ChromaTransformer2DModel": "Chroma",
    "FluxControlNetModel": "a ControlNet for Flux",
}
LATENTS_OF_A_TOKEN = 4
FIRST_LAYER = "img_in.weight", "x_embedder.weight"
LAST_LAYER = "final_layer.linear.weight", "proj_out.weight"
VARIANTS = {
    6: "FLUX.1 Fill, which takes a picture and its mask",
    2: "FLUX.1 Canny or Depth, which takes a control image",
}
"""By how many times the channels of FLUX.1 dev the transformer takes."""


class Flux1(FamilyDescriptor):
    """FLUX.1-dev takes a guidance scale as an input of the transformer; schnell, which runs in four steps, takes
    none."""

    name = "flux1"
    inputs = FamilyInputs(label="Flux", go_fast=True)
    parts = PARTS

    def detect(self, source: Source) -> Match | NoMatch:
        return _detect_file(source) if source.file else _detect_folder(source)

    def profile(self, source: Source) -> ModelProfile:
        if source.file:
            source.require(PARTS)
            check_widths(source)
        else:
            _check_positions(source.config("transformer"))
        vae = source.part("vae", PARTS)
        own, guided, published = remarks(source), is_guided(source), variant(source)
        knows = "" if source.file else str(own.get("knows", ""))
        return ModelProfile(
            name=source.name if source.file else str(own.get("name", source.name)),
            native=int(own.get("native", 1024)),
            tokens=int(own.get("tokens", published.tokens)),
            latent_factor=2 ** (len(block_channels(vae.config)) - 1),
            latent_channels=int(vae.config.get("latent_channels", 16)),
            steps=published.steps,
            guidance=3.5,
            inputs=self.inputs if guided else replace(self.inputs, guidance=None),
            knows=knows,
            guidance_of_host=3.0 if guided else None,
            hosted_as="" if knows else "dev" if guided else "schnell",
            safety_check=guided and not knows,  # the licence of FLUX.1-dev asks for it
        )

    def spec(self, source: Source, dtype: str) -> ModelSpec:
        return flux_spec(source, self.profile(source), dtype)

    def load(self, source: Source, component: str, dtype: torch.dtype) -> nn.Module:
        from modules.families.flux1.loading import load_component

        return load_component(source, component, dtype)

    def service(
        self,
        source: Source,
        models: ModelCache,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int,
    ) -> DiffusionService:
        from modules.families.flux1.loading import load_scheduler, load_tokenizers
        from modules.families.flux1.service import FluxService

        tokenizers, scheduler = load_tokenizers(source), load_scheduler(flow_config(source))
        return FluxService(models, self.profile(source), scheduler, tokenizers, dtype, fallback, prompt_cache_entries)

    def known_models(self) -> Mapping[str, ModelSpec]:
        return KNOWN_MODELS


FLUX1 = Flux1()


def _check_positions(config: Config) -> None:
    """Raises :class:`WeightsError` for a transformer whose parts of a position do not fill a head of its attention."""
    axes, head = config.get("axes_dims_rope"), config.get("attention_head_dim")
    if axes is not None and head is not None and (not isinstance(axes, list) or sum(axes) != head):
        raise WeightsError(f"{config.name}: axes_dims_rope must be numbers whose sum is attention_head_dim, {head}")


def _detect_folder(source: Source) -> Match | NoMatch:
    if not source.has("transformer"):  # without its configuration it is still clear what the folder should hold
        return Match() if re.match("Flux(?!2)", source.pipeline_class) else NoMatch()
    config = source.config("transformer")
    kind = config.get("_class_name")
    if kind != "FluxTransformer2DModel":
        return NoMatch(TRANSFORMER_CLASSES.get(str(kind), ""))
    taken, offered = (
        config.get("in_channels", 64),
        LATENTS_OF_A_TOKEN * int(source.config("vae").get("latent_channels", 16)),
    )
    return _detect_variant(taken, offered)


def _detect_file(source: Source) -> Match | NoMatch:
    if not any(PARTS["transformer"].prefixes(source.tensors)):
        return NoMatch()
    first, last = (source.shape(PARTS["transformer"], *names) for names in (FIRST_LAYER, LAST_LAYER))
    return _detect_variant(first[1], last[0]) if len(first) > 1 and last else Match()


def _detect_variant(taken: int, offered: int) -> Match | NoMatch:
    """By the channels of a token that the transformer takes, and those that text-to-image offers."""
    if taken == offered:
        return Match()
    return NoMatch(
        VARIANTS.get(taken // offered, f"a Flux transformer that takes {taken} channels in place of {offered}")
    )
