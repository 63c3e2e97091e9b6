"""Flux: prompts as T5's words and CLIP's whole, latents as tokens of 2 x 2, noise mixed in linearly (flow matching)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image

from backend.core.cancellation import Check
from backend.offload.oom_fallback import OomFallback
from modules.compat import pack_latents, unpack_latents
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.picture_latents import PictureLatents
from modules.diffusion.profile import ModelProfile
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.diffusion.prompt_text import (
    length_notes,
    network_notes,
    plain_words_notes,
    split_at_limit,
    unknown_words_notes,
    without_networks,
)
from modules.diffusion.sampler_names import EULER, SIMPLE
from modules.diffusion.samplers import flow_solver, noise_levels, verbatim_scheduler
from modules.families.flux1.lora_names import LORA_NAMES
from modules.families.flux1.pictures import binary_masks, edges_of, masks_as_channels, reference_positions

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import PreTrainedTokenizerBase

    from backend.model_cache_optimizer import ModelCache

LANCZOS = Image.Resampling.LANCZOS


class FluxService(DiffusionService):
    """Draws as diffusers' ``FluxPipeline``, ``FluxImg2ImgPipeline``, ``FluxInpaintPipeline``, ``FluxFillPipeline``,
    ``FluxKontextPipeline`` and ``FluxControlPipeline`` do. ``tokenizers`` are CLIP's and T5's; with ``edges`` the
    transformer was trained on the edges of its control image."""

    lora_names = LORA_NAMES

    def __init__(
        self,
        models: ModelCache,
        profile: ModelProfile,
        scheduler: FlowMatchEulerDiscreteScheduler,
        tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int = 32,
        edges: bool = False,
    ) -> None:
        super().__init__(
            models,
            profile,
            FluxPipeline(scheduler, None, None, None, None, None, None),
            dtype,
            fallback,
            prompt_cache_entries,
        )
        self._tokenizers = tokenizers
        self._scheduler = scheduler
        self._edges = edges

    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        (clip_tokenizer, t5_tokenizer), (clip, t5) = self._tokenizers, encoders
        prompt = without_networks(prompt)
        pooled = clip(
            self.token_ids(clip_tokenizer, prompt, clip_tokenizer.model_max_length), output_hidden_states=False
        ).pooler_output
        sequence = t5(self.token_ids(t5_tokenizer, prompt, self.profile.tokens), output_hidden_states=False)[0]
        return PromptEmbeddings(sequence.to(self.dtype), pooled.to(self.dtype))

    def prompt_notes(self, name: str, prompt: str) -> list[str]:
        words, label = without_networks(prompt), self.profile.inputs.label
        unread = split_at_limit(self._tokenizers[1], words, self.profile.tokens)[1]
        return [
            *network_notes(name, prompt),
            *plain_words_notes(name, words, label),
            *length_notes(name, unread, self.profile.tokens),
            *unknown_words_notes(name, words.removesuffix(unread), self._tokenizers[1], self.profile.knows),
        ]

    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        return {"prompt_embeds": embeddings.sequence, "pooled_prompt_embeds": embeddings.pooled}

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return torch.lerp(original, noise, level)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """N x 16 x rows x columns to tokens of 2 x 2, N x tokens x 64."""
        return pack_latents(latents)

    def unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        return unpack_latents(latents, width, height, self.profile.latent_factor)

    def encode_given(self, request: DenoiseRequest, check: Check) -> PictureLatents:
        # a whole run of Fill starts from noise alone, and puts nothing back
        whole = self.profile.inputs.fills and request.steps_run() == request.steps and not request.differential
        given = PictureLatents() if whole else super().encode_given(request, check)
        if self.profile.inputs.fills:
            return replace(given, channels=self._fill_channels(request, check))
        if request.controls:
            return replace(given, channels=self._control_channels(request, check))
        return self._with_references(given, request, check) if any(request.references) else given

    def _fill_channels(self, request: DenoiseRequest, check: Check) -> torch.Tensor:
        """The pictures without what is painted, and the masks, packed: N x tokens x channels. Without a mask everything
        is painted."""
        size, count = (request.width, request.height), len(request.seeds)
        given = request.masks or (Image.new("L", size, "white"),) * count
        masks = binary_masks(given, size)
        kept: dict[tuple[int, int], torch.Tensor] = {}
        pairs = [(id(image), id(mask)) for image, mask in zip(request.images, given, strict=True)]
        for pair, image, mask in zip(pairs, request.images, masks.split(1), strict=True):
            if pair not in kept:
                kept[pair] = self._processor.preprocess(image.resize(size, LANCZOS)) * (1 - mask)
        latents = self.encode_pixels([kept[pair] for pair in pairs], check)
        plane = masks_as_channels(masks, self.profile.latent_factor).to(latents)
        return torch.cat([self.pack(latents), self.pack(plane)], dim=-1)

    def _control_channels(self, request: DenoiseRequest, check: Check) -> torch.Tensor:
        """The control images, packed: N x tokens x channels."""
        controls = [image.resize((request.width, request.height), LANCZOS) for image in request.controls]
        return self.pack(self.encode_images([edges_of(one) if self._edges else one for one in controls], check))

    def _with_references(self, given: PictureLatents, request: DenoiseRequest, check: Check) -> PictureLatents:
        """The reference pictures as tokens, each at the size that the model was trained on."""
        tokens, positions = [], []
        for number, images in enumerate(zip(*request.references, strict=True), start=1):
            size = self.profile.canvas.reference_size(*images[0].size)
            latents = self.encode_images([image.resize(size, LANCZOS) for image in images], check)
            tokens.append(self.pack(latents))
            positions.append(reference_positions(latents.shape[2] // 2, latents.shape[3] // 2, number))
        ids = torch.cat(positions).to(tokens[0])
        return replace(given, tokens=torch.cat(tokens, dim=1), token_ids=ids)

    def prepare_steps(self, request: DenoiseRequest, tokens: int) -> dict[str, Any]:
        total = request.steps_run()
        self._pipeline.scheduler, sigmas = self._steps(request, tokens)
        sigmas = sigmas[request.steps - total :]
        if request.images:
            self._pipeline.scheduler.set_timesteps(sigmas=sigmas, mu=self._mu(tokens), device=self.models.device)
        return {"num_inference_steps": total, "sigmas": sigmas}

    def levels(self, request: DenoiseRequest, tokens: int) -> Sequence[float]:
        times = np.linspace(1.0, 1 / request.steps, request.steps)
        schedule = request.schedule if request.sampler_used == EULER else SIMPLE
        shifted = (
            self._shift(tokens, times)
            if schedule == SIMPLE
            else noise_levels(schedule, request.steps, partial(self._shift, tokens))
        )
        return [float(level) for level in shifted[request.steps - request.steps_run() :]]

    def _steps(self, request: DenoiseRequest, tokens: int) -> tuple[Any, np.ndarray]:
        """The scheduler, and the noise levels that it is asked for at the steps' beginnings."""
        if request.sampler_used != EULER:
            return flow_solver(request.sampler, self._strength_of_shift(tokens)), np.empty(0)
        if request.schedule == SIMPLE:  # as the model's own scheduler has it
            return self._scheduler, np.linspace(1.0, 1 / request.steps, request.steps)
        return verbatim_scheduler(), noise_levels(request.schedule, request.steps, partial(self._shift, tokens))

    def _mu(self, tokens: int) -> float:
        """How far a picture of so many tokens moves the noise levels, where the model was trained so (as in
        ``FluxPipeline``)."""
        config = self._scheduler.config
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
        return float(config.get("base_shift", 0.5) + slope * (tokens - low))

    def _strength_of_shift(self, tokens: int) -> float:
        config = self._scheduler.config
        return math.exp(self._mu(tokens)) if config.use_dynamic_shifting else float(config.shift)

    def _shift(self, tokens: int, times: np.ndarray) -> np.ndarray:
        """Times in 0..1 to noise levels, as the model's own scheduler does it."""
        shift = self._strength_of_shift(tokens)
        return np.asarray(shift * times / (1 + (shift - 1) * times))
