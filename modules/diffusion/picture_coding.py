"""Pictures to latents and back: by the autoencoder, one picture at a time, in tiles where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from backend.core.cancellation import Check, never_canceled
from backend.core.errors import WeightsError
from backend.offload.oom_fallback import OomFallback, Step, Strategy
from modules.diffusion.autoencoder_use import checked, in_tiles
from modules.diffusion.latent_forms import LatentForms
from modules.diffusion.profile import ModelProfile

SIZE_INPUTS = "width and height"
"""The inputs to lower when memory is full."""
Result = TypeVar("Result")


class PictureCoding(LatentForms):
    """What a diffusion service does with the autoencoder."""

    profile: ModelProfile
    fallback: OomFallback
    _processor: VaeImageProcessor

    def _with_or_without_tiles(self, name: str, size: tuple[int, int], batch: int, run: Callable[[], Result]) -> Result:
        """Runs the autoencoder on whole pictures of ``size``, or in tiles where these do not fit into memory."""

        def tiled() -> Result:
            with (
                self.models.on_device("vae") as (vae,),
                in_tiles(vae, self.profile.native // 2, self.profile.latent_factor),
            ):
                return run()

        strategies = [Strategy("whole pictures", run), Strategy("tiles", tiled)]
        return self.fallback.run(Step(name, ("vae",), (*size, batch), SIZE_INPUTS), strategies)

    def encode_images(self, images: Sequence[Image.Image], check: Check = never_canceled) -> torch.Tensor:
        """Pictures of one size to scaled latents, N x channels x rows x columns. ``check`` is called before every
        picture or tile."""
        return self._encode([(id(image), partial(self._processor.preprocess, image)) for image in images], check)

    def encode_pixels(self, pixels: Sequence[torch.Tensor], check: Check = never_canceled) -> torch.Tensor:
        """The same for pixels, each 1 x 3 x height x width in -1..1."""
        return self._encode([(id(one), partial(_same, one)) for one in pixels], check)

    def _encode(self, pictures: Sequence[tuple[int, Callable[[], torch.Tensor]]], check: Check) -> torch.Tensor:
        """Of pictures, each an identity and a function that gives its pixels. One at a time, which needs the least
        memory, and one that is given several times only once."""
        with self.models.on_device("vae") as loan, checked(loan[0], check):
            vae: Any = loan[0]

            def encoded(pixels: torch.Tensor) -> torch.Tensor:
                # the mean of the latent distribution, not a sample, so that no noise comes between picture and result
                mean: torch.Tensor = vae.encode(pixels.to(self.models.device, vae.dtype)).latent_dist.mode()
                return mean

            unique = {identity: encoded(pixels()) for identity, pixels in dict(pictures).items()}
            latents = torch.cat([unique[identity] for identity, _ in pictures])
            return self.normalised(latents, vae).to(self.dtype)

    def decode(
        self, latents: torch.Tensor, width: int, height: int, check: Check = never_canceled
    ) -> list[Image.Image]:
        """Packed latents to pictures. One at a time, which needs the least memory. ``check`` is called before every
        picture or tile.

        Raises :class:`WeightsError` when the result is not numbers, which would be saved as a black picture.
        """
        with self.models.on_device("vae") as loan, checked(loan[0], check):
            vae: Any = loan[0]
            unpacked = self.unpack(latents, width, height).to(vae.dtype)
            scaled = self.denormalised(unpacked, vae)
            pictures: list[Image.Image] = []
            for one in scaled.split(1):
                pixels = vae.decode(one, return_dict=False)[0]
                if not pixels.isfinite().all():
                    raise WeightsError(
                        f"{self.profile.name}: draws what is not a number; a file of the model is damaged, or 'dtype' "
                        "is too narrow for it"
                    )
                pictures += self._processor.postprocess(pixels, output_type="pil")
            return pictures


def _same(pixels: torch.Tensor) -> torch.Tensor:
    return pixels
