"""A model as requests and the diffusion service see it: its native size, its defaults, and the inputs that it honours.

Light: without torch. A family's descriptor (``modules/families``) makes one from the files of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modules.diffusion.canvas import AREAS, ASPECT_RATIOS, Canvas
from modules.diffusion.sampler_names import SAMPLERS, SCHEDULES


@dataclass(frozen=True)
class FamilyInputs:
    """Which inputs a family honours; a request that asks for another one is refused before any model runs.

    Attributes:
        label: What messages call the family: "Flux has no negative prompt".
        negative_prompt: Whether the model can be told what to avoid, by a second forward in every step.
        negative_above: The ``guidance_scale`` above which it is.
        guidance: The least and the greatest ``guidance_scale``; None = the model takes none.
        image, mask: Whether it starts from a picture, and repaints a part of one.
        needs: Inputs that every request must give, by name.
        fills: Whether the model itself reads the mask, and fits what it paints to the rest of the picture. Else the
            rest is put back after every step.
        references: The least and the greatest number of reference pictures that it looks at beside the prompt.
        control: Whether it takes a picture that says what is where.
        go_fast: Whether steps that change little may be skipped.
        no_go_fast: Why ``go_fast`` has no effect on a model whose hosts take it, for a notice; "" = it is refused.
        samplers, schedules: What it offers, by the names of ``modules/diffusion/sampler_names.py``.
        solver_schedules: The schedules of samplers other than Euler, which place their steps themselves.
        aspect_ratios, after_image, preferred_sizes, areas: How the size of a picture follows from the inputs; see
            :class:`modules.diffusion.canvas.Canvas`.
    """

    label: str
    negative_prompt: bool = False
    negative_above: float = 1
    guidance: tuple[float, float] | None = (0, 10)
    image: bool = True
    mask: bool = True
    needs: tuple[str, ...] = ()
    fills: bool = False
    references: tuple[int, int] = (0, 0)
    control: bool = False
    go_fast: bool = False
    no_go_fast: str = ""
    samplers: tuple[str, ...] = SAMPLERS
    schedules: tuple[str, ...] = SCHEDULES
    solver_schedules: tuple[str, ...] = SCHEDULES[:1]
    aspect_ratios: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(ASPECT_RATIOS))
    after_image: int = 0
    preferred_sizes: tuple[tuple[int, int], ...] = ()
    areas: tuple[str, ...] = AREAS


@dataclass(frozen=True)
class HostDefaults:
    """What hosts of a model take for inputs that a request leaves out; a guidance scale of None is the model's own."""

    guidance: float | None = None
    go_fast: bool = True
    output_format: str = "webp"
    output_quality: int = 80


@dataclass(frozen=True)
class ModelProfile:
    """One model of a family.

    Attributes:
        native: Side in pixels of the square that the model was trained on.
        tokens: Length that prompts are padded to.
        latent_factor: Pixels a side of one latent.
        steps, guidance: What a request gets that names none.
        inputs: What it honours: the family's, or less.
        encoders: The components that read the prompt together, in the order in which they are lent.
        denoiser: The component that runs in every step.
        knows: What a demo model draws, where its tokenizer has all words that it knows as one token each; "" for
            models that take any words.
        host: What hosts of the model do where the profile "studio" does something else.
        hosted_as: What hosts of fine-tunes call the model in their input ``model``; "" = nothing.
        safety_check: Whether its licence asks for a check of the pictures that are given out.
        strength, aspect_ratio: The ``prompt_strength`` and ``aspect_ratio`` that a request gets which names none.
    """

    name: str
    native: int
    tokens: int
    latent_factor: int
    latent_channels: int
    steps: int
    guidance: float
    inputs: FamilyInputs
    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    denoiser: str = "transformer"
    knows: str = ""
    host: HostDefaults = HostDefaults()
    hosted_as: str = ""
    safety_check: bool = False
    strength: float = 0.8
    aspect_ratio: str = "1:1"

    @property
    def canvas(self) -> Canvas:
        """Sizes lie on a grid of two latents: a token of Flux, and what the halvings of a UNet take."""
        has = self.inputs
        multiple = 2 * self.latent_factor
        return Canvas(self.native, multiple, has.aspect_ratios, has.after_image, has.areas, has.preferred_sizes)
