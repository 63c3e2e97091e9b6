"""Stable Diffusion XL and 1.5: a UNet that is told what to draw and what to avoid (classifier-free guidance), noise
added on top.

Beside Flux's this is the older way: two forwards a step, 77 tokens of CLIP, no mixing but adding of noise, which is up
to 15 times as strong as the picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from backend.core.texts import shortened
from backend.offload.oom_fallback import OomFallback
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.profile import ModelProfile
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.diffusion.prompt_text import length_notes, network_notes
from modules.diffusion.sampler_names import EULER, SIMPLE
from modules.diffusion.samplers import noise_levels, solver
from modules.families.stable_diffusion.chunks import MARKS, MAX_CHUNKS, divided
from modules.families.stable_diffusion.emphasis import edits
from modules.families.stable_diffusion.lora_names import LORA_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backend.model_cache_optimizer import ModelCache


def weighted(sequence: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Embeddings of tokens, 1 x tokens x width, times the tokens' weights, with the mean that they had before, as the
    WebUI does it."""
    if weights is None:
        return sequence
    changed = sequence.float() * weights.to(sequence.device)
    scale = sequence.float().mean() / changed.mean()
    return (changed * scale if scale.isfinite() else changed).to(sequence.dtype)


class StableDiffusionService(DiffusionService):
    """Draws as diffusers' ``StableDiffusion(XL)Pipeline`` and their relatives for images and masks do, with Euler or
    the sampler asked for.

    ``scheduler`` is the model's own configuration of one; ``zero_when_empty``: nothing to avoid is zeros, and not the
    empty prompt.
    """

    lora_names = LORA_NAMES

    def __init__(
        self,
        models: ModelCache,
        profile: ModelProfile,
        scheduler: dict[str, Any],
        tokenizers: tuple[PreTrainedTokenizerBase, ...],
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int = 32,
        zero_when_empty: bool = False,
    ) -> None:
        euler = EulerDiscreteScheduler.from_config(scheduler)
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet"))
        pipeline = (
            StableDiffusionXLPipeline(
                **parts, text_encoder_2=None, tokenizer_2=None, scheduler=euler, add_watermarker=False
            )
            if len(tokenizers) > 1
            else StableDiffusionPipeline(
                **parts, scheduler=euler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        )
        super().__init__(models, profile, pipeline, dtype, fallback, prompt_cache_entries)
        self._tokenizers = tokenizers
        self._scheduler = scheduler
        self._zero_when_empty = zero_when_empty

    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        read = [
            self._read(prompt, tokenizer, encoder, len(encoders) > 1)
            for tokenizer, encoder in zip(self._tokenizers, encoders, strict=True)
        ]
        sequence = torch.cat([sequence for sequence, _ in read], dim=-1)
        return PromptEmbeddings(sequence.to(self.dtype), read[-1][1])

    def _read(
        self, prompt: str, tokenizer: PreTrainedTokenizerBase, encoder: Any, two: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What one encoder makes of a prompt: a vector for every token of all its chunks, and one for the first chunk
        as a whole."""
        chunks = divided(tokenizer, prompt)
        sequences, pooled = [], None
        for ids, weights in zip(chunks.ids(tokenizer), chunks.weights(tokenizer.model_max_length), strict=True):
            output = encoder(ids.to(self.models.device), output_hidden_states=two)
            # SDXL was trained on the layer before the last of both, and on the whole as the second one projects it
            sequences.append(weighted(output.hidden_states[-2] if two else output.last_hidden_state, weights))
            if pooled is None and two and "text_embeds" in output:
                pooled = output.text_embeds.to(self.dtype)
        return torch.cat(sequences, dim=1), pooled

    def chunk_count(self, prompt: str) -> int:
        return len(divided(self._tokenizers[0], prompt).chunks)

    def prompt_notes(self, name: str, prompt: str) -> list[str]:
        tokenizer = self._tokenizers[0]
        tokens = MAX_CHUNKS * (tokenizer.model_max_length - MARKS)
        notes = network_notes(name, prompt) + length_notes(name, divided(tokenizer, prompt).unread, tokens)
        if found := edits(prompt):
            notes.append(
                f"{name}: '{shortened(found[0])}' does not change during the steps, it is read as weaker words"
            )
        return notes

    def null_embedding(self, embeddings: PromptEmbeddings) -> PromptEmbeddings | None:
        if not self._zero_when_empty:
            return None
        pooled = embeddings.pooled
        return PromptEmbeddings(
            torch.zeros_like(embeddings.sequence), None if pooled is None else torch.zeros_like(pooled)
        )

    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        given: dict[str, Any] = {"prompt_embeds": embeddings.sequence}
        if embeddings.pooled is not None:
            given["pooled_prompt_embeds"] = embeddings.pooled
        if embeddings.negative:
            given["negative_prompt_embeds"] = embeddings.negative.sequence
            if embeddings.negative.pooled is not None:
                given["negative_pooled_prompt_embeds"] = embeddings.negative.pooled
        return given

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return original + level * noise

    def scale_initial_noise(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / float(self._pipeline.scheduler.init_noise_sigma)  # which the pipeline multiplies by

    def prepare_steps(self, request: DenoiseRequest, tokens: int) -> dict[str, Any]:
        skipped = request.steps - request.steps_run()
        if request.sampler_used != EULER:
            self._pipeline.scheduler = solver(request.sampler, request.schedule, self._scheduler)
            return {"num_inference_steps": request.steps}
        scheduler = self._pipeline.scheduler = EulerDiscreteScheduler.from_config(self._scheduler)
        if request.schedule != SIMPLE:
            levels = [*noise_levels(request.schedule, request.steps, self._levels_at, told_times=True)[skipped:], 0.0]
            scheduler.set_timesteps(sigmas=levels, device=self.models.device)
            return {"sigmas": levels}
        scheduler.set_timesteps(
            request.steps, device=self.models.device
        )  # where the model's own configuration has them
        if not skipped:
            return {"num_inference_steps": request.steps}
        times = scheduler.timesteps[skipped:].tolist()
        scheduler.set_timesteps(timesteps=times, device=self.models.device)
        return {"timesteps": times}

    def _levels_at(self, times: np.ndarray) -> np.ndarray:
        """Times in 0..1 to the noise levels that the model was trained at, between which their logarithms are
        interpolated."""
        kept = self._pipeline.scheduler.alphas_cumprod.double().numpy()
        levels = np.log(np.sqrt((1 - kept) / kept))
        return np.asarray(np.exp(np.interp(np.asarray(times) * (len(levels) - 1), np.arange(len(levels)), levels)))
