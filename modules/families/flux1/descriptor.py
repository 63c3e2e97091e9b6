"""How FLUX.1 is recognized, and where its parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from backend.checkpoints.config import Config, read_optional_config
from backend.core.errors import WeightsError
from backend.planning.model_specs import ModelSpec
from modules.diffusion.profile import FamilyInputs, ModelProfile
from modules.families.descriptor import FamilyDescriptor, Match, NoMatch
from modules.families.flux1.spec import KNOWN_MODELS, flux_spec
from modules.families.source import Source
from modules.families.unsupported import is_adapter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.model_cache_optimizer import ModelCache
    from backend.offload.oom_fallback import OomFallback
    from modules.diffusion.base import DiffusionService

OWN_FILE = "family.json"
"""Where a folder says what its configurations cannot: its name, native size, length of prompts, and what it draws where
it knows few words."""
PREFIXES = ("", "model.diffusion_model.")
TRANSFORMER_CLASSES = {
    "Flux2Transformer2DModel": "FLUX.2",
    "ChromaTransformer2DModel": "Chroma",
    "FluxControlNetModel": "a ControlNet for Flux",
}
LATENTS_OF_A_TOKEN = 4
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

    def detect(self, source: Source) -> Match | NoMatch:
        return _detect_file(source) if source.file else _detect_folder(source)

    def profile(self, source: Source) -> ModelProfile:
        if source.file and not source.base:
            raise WeightsError(
                f"{source.label} holds a transformer only; name a folder with its text encoders, tokenizers, vae and "
                "scheduler in 'base_model'"
            )
        channels, latents = _autoencoder(source)
        own = read_optional_config(source.folder / OWN_FILE)
        transformer = source.config("transformer")
        _check_positions(transformer)
        guided = base_guided = bool(transformer.get("guidance_embeds"))
        if source.file:
            guided = any("guidance" in name for name in source.tensors)
        knows = "" if source.file else str(own.get("knows", ""))
        return ModelProfile(
            name=source.name if source.file else str(own.get("name", source.name)),
            native=int(own.get("native", 1024)),
            tokens=int(own.get("tokens", 512 if base_guided else 256)),
            latent_factor=2 ** (channels - 1),
            latent_channels=latents,
            steps=28 if guided else 4,
            guidance=3.5,
            inputs=self.inputs if guided else replace(self.inputs, guidance=None),
            knows=knows,
            guidance_of_host=3.0 if guided else None,
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

        tokenizers, scheduler = load_tokenizers(source), load_scheduler(source)
        return FluxService(models, self.profile(source), scheduler, tokenizers, dtype, fallback, prompt_cache_entries)

    def known_models(self) -> Mapping[str, ModelSpec]:
        return KNOWN_MODELS


FLUX1 = Flux1()


def _autoencoder(source: Source) -> tuple[int, int]:
    """How many sizes the autoencoder works at, and the channels of its latents."""
    config = source.config("vae")
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise WeightsError("vae/config.json names no block_out_channels; this is no autoencoder that can be used")
    return len(channels), int(config.get("latent_channels", 16))


def _check_positions(config: Config) -> None:
    """Raises :class:`WeightsError` for a transformer whose parts of a position do not fill a head of its attention."""
    axes, head = config.get("axes_dims_rope"), config.get("attention_head_dim")
    if axes is not None and head is not None and (not isinstance(axes, list) or sum(axes) != head):
        raise WeightsError(f"{config.name}: axes_dims_rope must be numbers whose sum is attention_head_dim, {head}")


def _detect_folder(source: Source) -> Match | NoMatch:
    if not source.has("transformer"):  # without its configuration it is still clear what the folder should hold
        return Match() if source.pipeline_class.startswith("Flux") else NoMatch()
    config = source.config("transformer")
    kind = config.get("_class_name")
    if kind != "FluxTransformer2DModel":
        return NoMatch(TRANSFORMER_CLASSES.get(str(kind), ""))
    taken, offered = config.get("in_channels", 64), LATENTS_OF_A_TOKEN * _autoencoder(source)[1]
    return _detect_variant(taken, offered)


def _detect_file(source: Source) -> Match | NoMatch:
    def holds(*names: str) -> bool:
        return source.holds(*(prefix + name for prefix in PREFIXES for name in names))

    if is_adapter(source):
        of_flux = any(
            part in name for name in source.tensors for part in ("double_blocks", "single_transformer_blocks")
        )
        only_double = source.holds("transformer.transformer_blocks.", "transformer_blocks.")
        return NoMatch("a LoRA for Flux" if of_flux or only_double else "")
    if holds("double_stream_modulation_img."):
        return NoMatch("FLUX.2")
    if holds("distilled_guidance_layer."):
        return NoMatch("Chroma")
    if source.holds("controlnet_blocks.", "controlnet_x_embedder.", "pos_embed_input.", "input_hint_block."):
        return NoMatch("a ControlNet for Flux" if holds("double_blocks.", "transformer_blocks.") else "")
    if not holds("double_blocks.", "single_transformer_blocks."):
        return NoMatch()
    first, last = (_width(source, names) for names in (("img_in", "x_embedder"), ("final_layer.linear", "proj_out")))
    return _detect_variant(first[1], last[0]) if first and last else Match()


def _width(source: Source, layers: tuple[str, ...]) -> tuple[int, ...] | None:
    """Outputs and inputs of the layer, which has one of these names."""
    names = (f"{prefix}{layer}.weight" for prefix in PREFIXES for layer in layers)
    return next((source.tensors[name] for name in names if name in source.tensors), None)


def _detect_variant(taken: int, offered: int) -> Match | NoMatch:
    """By the channels of a token that the transformer takes, and those that text-to-image offers."""
    if taken == offered:
        return Match()
    return NoMatch(
        VARIANTS.get(taken // offered, f"a Flux transformer that takes {taken} channels in place of {offered}")
    )
