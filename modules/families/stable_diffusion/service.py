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

from backend.offload.oom_fallback import OomFallback
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.diffusion.samplers import EULER, SIMPLE, noise_levels, solver
from modules.families.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from backend.model_cache_optimizer import ModelCache


class StableDiffusionService(DiffusionService):
    """Draws as diffusers' ``StableDiffusion(XL)Pipeline`` and their relatives for images and masks do, with Euler or
    the sampler asked for.

    ``scheduler`` is the model's own configuration of one; ``zero_when_empty``: nothing to avoid is zeros, and not the
    empty prompt.
    """

    def __init__(
        self,
        models: ModelCache,
        family: Family,
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
        super().__init__(models, family, pipeline, dtype, fallback, prompt_cache_entries)
        self._tokenizers = tokenizers
        self._scheduler = scheduler
        self._zero_when_empty = zero_when_empty

    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        two = len(encoders) > 1
        written = [
            encoder(self.token_ids(tokenizer, prompt, tokenizer.model_max_length), output_hidden_states=two)
            for tokenizer, encoder in zip(self._tokenizers, encoders, strict=True)
        ]
        if not two:
            return PromptEmbeddings(written[0].last_hidden_state.to(self.dtype), None)
        # SDXL was trained on the layer before the last of both, and on the whole as the second one projects it
        sequence = torch.cat([output.hidden_states[-2] for output in written], dim=-1)
        return PromptEmbeddings(sequence.to(self.dtype), written[-1].text_embeds.to(self.dtype))

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
