"""How FLUX.1 is recognized, and where its parts are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from backend.checkpoints.config import Config
from backend.core.errors import WeightsError
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import HostDefaults, ModelProfile
from modules.families.autoencoder import block_channels
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.flux1.parts import PARTS
from modules.families.flux1.published import DEV, Variant
from modules.families.flux1.spec import KNOWN_MODELS, flux_spec
from modules.families.flux1.variant import (
    CONTROLLED,
    check_widths,
    flow_config,
    is_guided,
    mask_channels,
    remarks,
    token_channels,
    variant,
)
from modules.families.scheduler import flow_scheduler
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
MOST_HALVINGS = 6
"""How often an autoencoder halves a picture at most."""


class Flux1(FamilyDescriptor):
    """FLUX.1-dev takes a guidance scale as an input of the transformer; schnell, which runs in four steps, takes
    none. Fill, Canny and Depth read pictures as further channels, Kontext as further tokens."""

    name = "flux1"
    inputs = DEV.inputs
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
        factor = 2 ** (len(block_channels(vae.config)) - 1)
        _check_mask_channels(source, published, factor)
        return ModelProfile(
            name=source.name if source.file else str(own.get("name", source.name)),
            native=int(own.get("native", 1024)),
            tokens=int(own.get("tokens", published.tokens)),
            latent_factor=factor,
            latent_channels=int(vae.config.get("latent_channels", 16)),
            steps=published.steps,
            guidance=published.guidance,
            inputs=published.inputs if guided else replace(published.inputs, guidance=None),
            knows=knows,
            host=HostDefaults(guidance=published.guidance_of_host),
            hosted_as="" if knows else published.hosted_as,
            strength=published.strength,
            aspect_ratio=published.aspect_ratio,
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
        from modules.families.flux1.loading import load_tokenizers
        from modules.families.flux1.service import FluxService

        return FluxService(
            models,
            self.profile(source),
            flow_scheduler(flow_config(source)),
            load_tokenizers(source),
            dtype,
            fallback,
            prompt_cache_entries,
            edges=variant(source).edges,
        )

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
    kind = source.config("transformer").get("_class_name")
    if kind != "FluxTransformer2DModel":
        return NoMatch(TRANSFORMER_CLASSES.get(str(kind), ""))
    return _detect_variant(*token_channels(source))


def _detect_file(source: Source) -> Match | NoMatch:
    if not any(PARTS["transformer"].prefixes(source.tensors)):
        return NoMatch()
    return _detect_variant(*token_channels(source))


def _detect_variant(taken: int, own: int) -> Match | NoMatch:
    """By the channels of a token that the transformer takes, and those of the latents."""
    masks = [mask_channels(2**halvings) for halvings in range(MOST_HALVINGS + 1)]
    if taken in (own, CONTROLLED * own) or taken - CONTROLLED * own in masks:
        return Match()
    return NoMatch(f"a Flux transformer that takes {taken} channels in place of {own}")


def _check_mask_channels(source: Source, published: Variant, latent_factor: int) -> None:
    """Raises :class:`WeightsError` for a Fill transformer whose masks are not those of its autoencoder."""
    taken, own = token_channels(source)
    if published.inputs.fills and taken != CONTROLLED * own + mask_channels(latent_factor):
        raise WeightsError(
            f"{source.label} takes {taken} channels, and with its autoencoder there are "
            f"{CONTROLLED * own + mask_channels(latent_factor)}; name the folder of its own model in 'base_model'"
        )
