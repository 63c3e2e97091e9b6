"""One typed request for pictures: every input once, with its range. What is wrong is refused here, before any model
runs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from backend.core.errors import InputError, nearest
from modules.diffusion.canvas import ASPECT_RATIOS, MEGAPIXELS, Canvas
from modules.diffusion.sampler_names import SAMPLERS, SCHEDULES
from modules.request.adetailer_unit import AdetailerUnit

CUSTOM = "custom"
HIRES_UPSCALERS = ("ESRGAN", "Lanczos", "Latent", "Latent (nearest)", "Latent (bicubic)")
OUTPUT_FORMATS = ("webp", "jpg", "png")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Hires:
    """The second pass of Hires fix. ``steps`` 0 are those of the first pass; ``strength`` is how much of the picture
    is redrawn."""

    scale: float = 1.3
    steps: int = 0
    upscaler: str = "ESRGAN"
    strength: float = 0.3

    def __post_init__(self) -> None:
        _check_ranges(
            {
                "hr_scale": (self.scale, 1, 4),
                "hr_steps": (self.steps, 0, 50),
                "denoising_strength": (self.strength, 0, 1),
            }
        )
        _check_choice("hr_upscaler", self.upscaler, HIRES_UPSCALERS)


@dataclass(frozen=True)
class ImageRequest:
    """Everything that decides what the pictures look like. ``width`` and ``height`` are those of the first pass, in
    pixels."""

    prompt: str
    width: int
    height: int
    seed: int
    negative_prompt: str = ""
    num_outputs: int = 1
    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    sampler: str = SAMPLERS[0]
    scheduler: str = SCHEDULES[0]
    go_fast: bool = False
    image: Image.Image | None = None
    mask: Image.Image | None = None
    prompt_strength: float = 0.8
    hires: Hires | None = None
    adetailer: tuple[AdetailerUnit, ...] = ()
    scale: float = 1.0
    upscaler: str = ""
    face_enhance: bool = False
    output_format: str = "webp"
    output_quality: int = 80
    prompt_upsampling: bool = False
    prompt_upsampling_seed: int = 0
    original_prompt: str = ""
    """The user's words, where ``prompt`` was rewritten or should have been; ``prompt_note`` says what was done."""
    prompt_note: str = ""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("prompt", "is empty; say in words what the picture should show")
        _check_ranges(
            {
                "num_outputs": (self.num_outputs, 1, 4),
                "num_inference_steps": (self.num_inference_steps, 1, 50),
                "guidance_scale": (self.guidance_scale, 0, 10),
                "prompt_strength": (self.prompt_strength, 0, 1),
                "scale": (self.scale, 1, 8),
                "output_quality": (self.output_quality, 0, 100),
                "seed": (self.seed, 0, MAX_SEED),
                "prompt_upsampling_seed": (self.prompt_upsampling_seed, 0, MAX_SEED),
            }
        )
        _check_choice("sampler", self.sampler, SAMPLERS)
        _check_choice("scheduler", self.scheduler, SCHEDULES)
        _check_choice("output_format", self.output_format, OUTPUT_FORMATS)
        if self.mask is not None and self.image is None:
            raise InputError("mask", "needs an image to paint into; give the input 'image' too")
        if self.mask is not None and self.image is not None and self.mask.size != self.image.size:
            raise InputError("mask", f"must have the size of the image ({_size(self.image)}), not {_size(self.mask)}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every picture: the request's own, and the following numbers."""
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.num_outputs))


def _check_ranges(inputs: Mapping[str, tuple[float, float, float]]) -> None:
    """Of every input its value, the least and the greatest that it may have."""
    for name, (value, low, high) in inputs.items():
        if not low <= value <= high:
            raise InputError(name, f"must be from {low} to {high}, not {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(name, f"must be one of {', '.join(choices)}, not '{value}'{nearest(value, choices)}")


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def choose_size(
    canvas: Canvas, aspect_ratio: str, megapixels: str, width: int | None, height: int | None, image: Image.Image | None
) -> tuple[int, int]:
    """The size of the first pass: the image's (fitted to the grid and the native area), the custom one, or the
    ratio's."""
    if image is not None:
        area = canvas.native**2 * MEGAPIXELS[megapixels]
        scale = (area / (image.width * image.height)) ** 0.5
        fitted = [max(canvas.multiple, round(side * scale / canvas.multiple) * canvas.multiple) for side in image.size]
        return fitted[0], fitted[1]
    if aspect_ratio != CUSTOM:
        if aspect_ratio not in ASPECT_RATIOS:
            raise InputError("aspect_ratio", f"unknown ratio '{aspect_ratio}'{nearest(aspect_ratio, ASPECT_RATIOS)}")
        return canvas.size(aspect_ratio, megapixels)
    for name, value in (("width", width), ("height", height)):
        if value is None:
            raise InputError(name, "is needed when aspect_ratio is 'custom'")
        if value % canvas.multiple:
            below = value - value % canvas.multiple
            raise InputError(
                name,
                f"must be a multiple of {canvas.multiple} for this model, not {value}; use {below or canvas.multiple} "
                f"or {below + canvas.multiple}",
            )
    assert width is not None and height is not None
    return width, height


def random_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)
