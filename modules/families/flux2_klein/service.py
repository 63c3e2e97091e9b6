"""FLUX.2 klein: prompts as hidden states of three layers of Qwen3, latents of 2 x 2 as tokens, noise mixed in linearly.

A picture with a mask is also a reference: its tokens stand behind those that are denoised, so the model sees what it
repaints. Both as diffusers' ``Flux2KleinInpaintPipeline`` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image

from backend.core.cancellation import Check
from backend.offload.oom_fallback import OomFallback
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import StepReport
from modules.diffusion.picture_latents import PictureLatents
from modules.diffusion.profile import ModelProfile
from modules.diffusion.prompt_cache import PromptEmbeddings
from modules.diffusion.prompt_text import length_notes, network_notes, plain_words_notes, without_networks
from modules.diffusion.sampler_names import EULER, SIMPLE
from modules.diffusion.samplers import flow_solver, noise_levels, verbatim_scheduler
from modules.families.chat_prompt import ChatPrompt
from modules.families.flux2_klein.lora_names import LORA_NAMES
from modules.families.flux2_klein.parts import PATCH, TEXT_LAYERS

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

    from backend.model_cache_optimizer import ModelCache

REFERENCE_TIME = 10
"""The first coordinate of the first reference; that of the second is twice as much, and so on."""


class KleinService(DiffusionService):
    """Draws as diffusers' ``Flux2KleinPipeline`` and ``Flux2KleinInpaintPipeline`` do. Image-to-image without a mask,
    which has no pipeline there, is that of inpainting with all of the picture masked and no reference."""

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
        pipeline = Flux2KleinPipeline(
            scheduler, None, None, None, None, is_distilled=not profile.inputs.negative_prompt
        )
        super().__init__(models, profile, pipeline, dtype, fallback, prompt_cache_entries)
        # the pipeline ends with the statistics of the autoencoder, which it does not have; decode() applies them
        pipeline.vae = _without_statistics(models.device)
        self._scheduler, self._chat = scheduler, chat

    def denoise(
        self,
        request: DenoiseRequest,
        embeddings: PromptEmbeddings,
        given: PictureLatents,
        report: StepReport | None,
    ) -> torch.Tensor:
        if self.profile.inputs.guidance is None:  # else the pipeline would say of every request that it ignores it
            request = replace(request, guidance=1.0)
        return super().denoise(request, embeddings, given, report)

    def encode_given(self, request: DenoiseRequest, check: Check) -> PictureLatents:
        """Also what the model looks at beside the prompt: the picture that it repaints a part of, and references."""
        given = super().encode_given(request, check)
        seen = [given.start] if request.masks and given.start is not None else []
        seen += [self._encode_reference(images, check) for images in zip(*request.references, strict=True)]
        if not seen:
            return given
        ids = [_places(REFERENCE_TIME * (1 + index), latents) for index, latents in enumerate(seen)]
        tokens = torch.cat([self.pack(latents) for latents in seen], dim=1)
        return replace(given, tokens=tokens, token_ids=torch.cat(ids, dim=1))

    def _encode_reference(self, images: Sequence[Image.Image], check: Check) -> torch.Tensor:
        """One reference of every picture of the batch, N x 32 x rows x columns. One that they share is encoded once."""
        shared = all(image is images[0] for image in images)
        pixels = [self._reference_pixels(image) for image in (images[:1] if shared else images)]
        return self.encode_pixels(pixels, check).expand(len(images), -1, -1, -1)

    def _reference_pixels(self, image: Image.Image) -> torch.Tensor:
        """A reference in its own shape, and no larger than the native area."""
        if (shrink := self.profile.native / math.sqrt(image.width * image.height)) < 1:
            image = image.resize((int(image.width * shrink), int(image.height * shrink)), Image.Resampling.LANCZOS)
        side = PATCH * self.profile.latent_factor
        width, height = (max(1, length // side) * side for length in image.size)
        processor = self._pipeline.image_processor
        return processor.preprocess(image, height=height, width=width, resize_mode="crop")  # type: ignore[no-any-return]

    def embed(self, prompt: str, encoders: tuple[Any, ...]) -> PromptEmbeddings:
        ids, mask = (tensor.to(self.models.device) for tensor in self._chat.ids_and_mask(without_networks(prompt)))
        states = encoders[0](ids, mask, output_hidden_states=list(TEXT_LAYERS), use_cache=False).hidden_states
        return PromptEmbeddings(torch.cat([states[layer] for layer in TEXT_LAYERS], dim=-1).to(self.dtype), None)

    def prompt_notes(self, name: str, prompt: str) -> list[str]:
        words = without_networks(prompt)
        return [
            *network_notes(name, prompt),
            *plain_words_notes(name, words, self.profile.inputs.label),
            *length_notes(name, self._chat.unread(words), self.profile.tokens),
        ]

    def conditions(self, embeddings: PromptEmbeddings) -> dict[str, Any]:
        given: dict[str, Any] = {"prompt_embeds": embeddings.sequence}
        if embeddings.negative:
            given["negative_prompt_embeds"] = embeddings.negative.sequence
        return given

    def normalised(self, latents: torch.Tensor, vae: Any) -> torch.Tensor:
        mean, deviation = _statistics(vae, latents)
        return _from_patches((_patches(latents) - mean) / deviation)

    def denormalised(self, latents: torch.Tensor, vae: Any) -> torch.Tensor:
        mean, deviation = _statistics(vae, latents)
        return _from_patches(_patches(latents) * deviation + mean)

    def draw_noise(self, shape: Sequence[int], generators: list[torch.Generator]) -> torch.Tensor:
        count, channels, rows, columns = shape
        patches = (count, channels * PATCH**2, rows // PATCH, columns // PATCH)
        return _from_patches(super().draw_noise(patches, generators))

    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return torch.lerp(original, noise, level)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """N x 32 x rows x columns to tokens of 2 x 2, N x tokens x 128."""
        return _patches(latents).flatten(2).transpose(1, 2)

    def unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        return _from_patches(self._grid(latents, width, height))

    def to_pipeline(self, latents: torch.Tensor, request: DenoiseRequest) -> torch.Tensor:
        return self._grid(latents, request.width, request.height)

    def from_pipeline(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pack(latents)

    def _grid(self, tokens: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """N x tokens x channels to N x channels x rows x columns of tokens, for pictures of that size in pixels."""
        side = PATCH * self.profile.latent_factor
        grid: torch.Tensor = tokens.transpose(1, 2).unflatten(2, (height // side, width // side))
        return grid

    def prepare_steps(self, request: DenoiseRequest, tokens: int) -> dict[str, Any]:
        if request.sampler_used != EULER:
            self._pipeline.scheduler = flow_solver(request.sampler, 1.0)  # the pipeline tells it the shift
            return {"num_inference_steps": request.steps}
        total = request.steps_run()
        levels = self._levels(request, tokens)[request.steps - total :]
        scheduler = self._pipeline.scheduler = verbatim_scheduler()
        scheduler.set_timesteps(sigmas=levels, device=self.models.device)
        return {"num_inference_steps": total, "sigmas": levels}

    def _levels(self, request: DenoiseRequest, tokens: int) -> list[float]:
        """The noise levels at which all steps of the request begin, also those that are not run."""
        shift = partial(self._shift, compute_empirical_mu(tokens, request.steps))
        if request.schedule != SIMPLE:
            return [float(level) for level in noise_levels(request.schedule, request.steps, shift)]
        return shift(np.linspace(1.0, 1 / request.steps, request.steps)).tolist()  # type: ignore[no-any-return]

    def _shift(self, mu: float, times: np.ndarray) -> np.ndarray:
        """Times in 0..1 to noise levels, as the model's own scheduler does it."""
        self._scheduler.set_timesteps(sigmas=times, mu=mu, device="cpu")
        return np.asarray(self._scheduler.sigmas[:-1])


def _places(time: int, latents: torch.Tensor) -> torch.Tensor:
    """The coordinates of the tokens of a reference, N x tokens x 4: its time, rows and columns, and 0."""
    axes = torch.tensor([time]), *(torch.arange(side // PATCH) for side in latents.shape[2:]), torch.tensor([0])
    return torch.cartesian_prod(*axes).expand(len(latents), -1, -1).to(latents.device)


def _patches(latents: torch.Tensor) -> torch.Tensor:
    """N x C x rows x columns to N x 4C x rows/2 x columns/2: a channel for each place in a patch of 2 x 2."""
    return torch.nn.functional.pixel_unshuffle(latents, PATCH)


def _from_patches(patches: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_patches`."""
    return torch.nn.functional.pixel_shuffle(patches, PATCH)


def _statistics(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the patches' channels, as the autoencoder has them."""
    mean, variance = (values.view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
    return mean.to(latents), torch.sqrt(variance + vae.config.batch_norm_eps).to(latents)


def _without_statistics(device: torch.device) -> SimpleNamespace:
    """What stands for the autoencoder at the end of diffusers' pipeline: mean 0 and standard deviation 1."""
    return SimpleNamespace(
        bn=SimpleNamespace(running_mean=torch.zeros(1, device=device), running_var=torch.ones(1, device=device)),
        config=SimpleNamespace(batch_norm_eps=0.0),
    )
