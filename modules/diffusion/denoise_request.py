"""What the diffusion service is asked for: one batch of pictures of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from modules.diffusion.sampler_names import EULER, SIMPLE
from modules.diffusion.tiles import Tiles
from modules.lora.files.lora_file import LoraFile


@dataclass(frozen=True)
class DenoiseRequest:
    """A batch to generate: one prompt and one seed for each picture, all of one size in pixels.

    With ``images`` (of exactly that size) it is image-to-image at ``strength`` (0 to 1); with ``masks`` as well (mode
    L, white is repainted) it is inpainting. With ``differential`` grey is repainted too: the darker it is, the later
    the step from which it may change. ``sampler`` and ``schedule`` are names of ``modules/diffusion/samplers.py``; with
    ``images`` the sampler is always Euler. ``go_fast`` skips steps that change little. With ``latent_resize`` (a mode
    of ``torch.nn.functional.interpolate``) the images may have another size; their latents are resized to this one.
    ``negative`` is the negative prompt, which families without one ignore. ``references`` has for each picture those
    that the model looks at beside the prompt, and ``controls`` one each that says what is where; their sizes are up to
    the family. ``loras`` change the models, each at its scale. With ``tiles`` the pictures are tiles of one picture, to
    which the first seed belongs.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    steps: int
    guidance: float
    images: tuple[Image.Image, ...] = ()
    masks: tuple[Image.Image, ...] = ()
    strength: float = 1.0
    differential: bool = False
    sampler: str = EULER
    schedule: str = SIMPLE
    go_fast: bool = False
    latent_resize: str = ""
    negative: str = ""
    references: tuple[tuple[Image.Image, ...], ...] = ()
    controls: tuple[Image.Image, ...] = ()
    loras: tuple[tuple[LoraFile, float], ...] = ()
    tiles: Tiles | None = None

    def only(self, index: int) -> DenoiseRequest:
        """The request for one picture of the batch."""
        chosen = slice(index, index + 1)
        return replace(
            self,
            prompts=self.prompts[chosen],
            seeds=self.seeds[chosen],
            images=self.images[chosen],
            masks=self.masks[chosen],
            references=self.references[chosen],
            controls=self.controls[chosen],
        )

    @property
    def reads_pictures(self) -> bool:
        """Whether there are pictures to encode."""
        return bool(self.images or self.controls or any(self.references))

    @property
    def sampler_used(self) -> str:
        """Samplers other than Euler cannot start from a picture with noise added."""
        return EULER if self.images else self.sampler

    def steps_run(self) -> int:
        """The steps that are really run: all, or with images the share that ``strength`` asks for."""
        return steps_run(self.steps, self.strength) if self.images else self.steps


def steps_run(steps: int, strength: float) -> int:
    """How many of ``steps`` are run at ``strength`` (0 to 1): that share, at least one."""
    return max(1, min(steps, int(steps * strength)))
