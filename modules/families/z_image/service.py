"""Z-Image: prompts as the last but one hidden state of Qwen3, of as many tokens as a prompt has; latents as they are,
noise mixed in linearly in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift
from diffusers.utils.torch_utils import randn_tensor

from backend.offload.oom_fallback import OomFallback
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import StepReport
from modules.diffusion.picture_latents import PictureLatents
from modules.diffusion.profile import ModelProfile
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.diffusion.prompt_text import length_notes, network_notes, plain_words_notes, without_networks
from modules.diffusion.sampler_names import SIMPLE
from modules.diffusion.samplers import noise_levels, verbatim_scheduler
from modules.families.chat_prompt import ChatPrompt
from modules.families.z_image.lora_names import LORA_NAMES
from modules.families.z_image.parts import PATCH

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

    from backend.model_cache_optimizer import ModelCache


class ZImageService(DiffusionService):
    """Draws as diffusers' ``ZImagePipeline``, ``ZImageImg2ImgPipeline`` and ``ZImageInpaintPipeline`` do."""

    lora_names = LORA_NAMES

    def __init__(
        self,
        models: ModelCache,
        profile: ModelProfile,
        scheduler: FlowMatchEulerDiscreteScheduler,
        chat: ChatPrompt,
        dtype: torch.dtype,
        fallback: OomFallback,
        prompt_cache_entries: int = 32,
    ) -> None:
        pipeline = ZImagePipeline(scheduler, None, None, None, None)
        super().__init__(models, profile, pipeline, dtype, fallback, prompt_cache_entries)
        self._scheduler, self._chat = scheduler, chat

    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        ids, mask = self._chat.ids_and_mask(without_networks(prompt))
        read = mask[0].nonzero()
        begin, end = int(read[0]), int(read[-1]) + 1  # on the host, which then has not to wait for the device
        device = self.models.device
        sequence = encoders[0](ids.to(device), mask.to(device).bool(), use_cache=False).last_hidden_state
        return PromptEmbeddings(sequence[:, begin:end].to(self.dtype), None, lengths=(end - begin,))

    def prompt_notes(self, name: str, prompt: str) -> list[str]:
        words = without_networks(prompt)
        return [
            *network_notes(name, prompt),
            *plain_words_notes(name, words, self.profile.inputs.label),
            *length_notes(name, self._chat.unread(words), self.profile.tokens),
        ]

    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        given: dict[str, Any] = {"prompt_embeds": embeddings.each()}
        if embeddings.negative:
            given["negative_prompt_embeds"] = embeddings.negative.each()
        return given

    def draw_noise(self, shape: Sequence[int], generators: list[torch.Generator]) -> torch.Tensor:
        noise: torch.Tensor = randn_tensor(
            tuple(shape), generator=generators, device=self.models.device, dtype=torch.float32
        )
        return noise

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return torch.lerp(original.to(noise), noise, level)

    def denoise(
        self,
        request: DenoiseRequest,
        embeddings: PromptEmbeddings,
        given: PictureLatents,
        report: StepReport | None,
    ) -> torch.Tensor:
        if self.profile.inputs.guidance is None:  # the pipeline would take it for a second forward
            request = replace(request, guidance=0.0)
        return super().denoise(request, embeddings, given, report)

    def prepare_steps(self, request: DenoiseRequest, tokens: int) -> dict[str, Any]:
        total = request.steps_run()
        levels = self._levels(request)[request.steps - total :]
        scheduler = self._pipeline.scheduler = verbatim_scheduler()
        scheduler.set_timesteps(sigmas=levels, device=self.models.device)
        return {"num_inference_steps": total, "sigmas": levels}

    def _levels(self, request: DenoiseRequest) -> list[float]:
        """The noise levels at which all steps of the request begin, also those that are not run."""
        side = PATCH * self.profile.latent_factor
        shift = partial(self._shift, (request.width // side) * (request.height // side))
        if request.schedule != SIMPLE:
            return [float(level) for level in noise_levels(request.schedule, request.steps, shift)]
        even = torch.linspace(1.0, 1 / request.steps, request.steps).tolist()
        return shift(np.array(even)).tolist()  # type: ignore[no-any-return]

    def _shift(self, tokens: int, times: np.ndarray) -> np.ndarray:
        """Times in 0..1 to noise levels for a picture of so many tokens, as the model's own scheduler does it."""
        config = self._scheduler.config
        bounds = ("base_image_seq_len", 256), ("max_image_seq_len", 4096), ("base_shift", 0.5), ("max_shift", 1.15)
        mu = calculate_shift(tokens, *(config.get(name, default) for name, default in bounds))
        self._scheduler.set_timesteps(sigmas=times, mu=mu, device="cpu")
        return np.asarray(self._scheduler.sigmas[:-1])
