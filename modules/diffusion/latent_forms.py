"""The forms that latents have between the autoencoder, the denoiser and diffusers' pipeline, which families define."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor

if TYPE_CHECKING:
    from backend.model_cache_optimizer import ModelCache
    from modules.diffusion.denoise_request import DenoiseRequest


class LatentForms(ABC):
    """What a family makes of latents. What does nothing here, most families do not need."""

    models: ModelCache
    dtype: torch.dtype

    @abstractmethod
    def add_noise(self, original: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Packed latents with as much noise as the family has at that level."""

    def scale_initial_noise(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents with noise added, in the scale in which the pipeline takes its initial latents."""
        return latents

    def normalised(self, latents: torch.Tensor, vae: Any) -> torch.Tensor:
        """What the autoencoder encodes to, in the scale that the denoiser was trained for."""
        return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor  # type: ignore[no-any-return]

    def denormalised(self, latents: torch.Tensor, vae: Any) -> torch.Tensor:
        """The inverse of :meth:`normalised`."""
        return latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)  # type: ignore[no-any-return]

    def draw_noise(self, shape: Sequence[int], generators: list[torch.Generator]) -> torch.Tensor:
        """Noise for latents of this shape, N x channels x rows x columns, a generator for each picture."""
        noise: torch.Tensor = randn_tensor(
            tuple(shape), generator=generators, device=self.models.device, dtype=self.dtype
        )
        return noise

    def to_pipeline(self, latents: torch.Tensor, request: DenoiseRequest) -> torch.Tensor:
        """Packed latents as the pipeline takes its initial ones; unchanged here."""
        return latents

    def from_pipeline(self, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's result as packed latents; unchanged here."""
        return latents

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """N x channels x rows x columns to what the denoiser takes; unchanged here."""
        return latents

    def unpack(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """The inverse of :meth:`pack`, for pictures of that size in pixels."""
        return latents
