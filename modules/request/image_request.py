"""One typed request for pictures. What is wrong is refused here, before any model runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from PIL import Image
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from backend.core.texts import says_something
from backend.core.validation import STRICT, Text, WholeNumber
from modules.diffusion.canvas import MAX_ASPECT_RATIO, MAX_SQUEEZE
from modules.diffusion.sampler_names import SAMPLERS, SCHEDULES, Sampler, Schedule
from modules.request.adetailer_unit import (
    MAIN_PROMPT,
    OTHER_MARKS,
    OWN_MASK,
    PROMPT_ORDERS,
    SEPARATOR,
    SKIP,
    STOP,
    AdetailerUnit,
    region_prompts,
)
from modules.request.lora_use import LoraUse, in_region
from modules.request.original import Original

MAX_SEED = 2**32 - 1
MAX_AREA = 2048 * 2112
"""Of a picture of the first pass, in pixels: four times a native area of 1024 x 1024, and what the grid adds."""

HiresUpscaler = Literal["ESRGAN", "Lanczos", "Latent", "Latent (nearest)", "Latent (bicubic)"]
HIRES_UPSCALERS: tuple[HiresUpscaler, ...] = get_args(HiresUpscaler)
HiresTiles = Literal["auto", "on", "off"]
AspectRatio = Literal[
    "1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21", "match_input_image", "custom"
]
Megapixels = Literal["1", "0.25", "0.5", "2", "4", "match_input"]
OutputFormat = Literal["webp", "jpg", "png"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)

Seed = Annotated[WholeNumber, Field(ge=0, le=MAX_SEED)]
Side = Annotated[WholeNumber, Field(ge=8, le=6144)]
Strength = Annotated[float, Field(ge=0, le=1)]


def _without_marks(prompt: str) -> str:
    unknown = (*PROMPT_ORDERS, SKIP, STOP, *OTHER_MARKS)
    if mark := next((mark for mark in unknown if mark in prompt), ""):
        raise ValueError(f"has {mark}, which is for the detail pass; leave it out, or use {SEPARATOR}, {MAIN_PROMPT}")
    return prompt


@dataclass(frozen=True, config=STRICT)
class Hires:
    """The second pass of Hires fix. ``steps`` 0 means those of the first pass; ``strength`` is how much of the picture
    is repainted: 0 keeps it, 1 ignores it. ``prompt`` is that of the pass ("": the request's own), or with ``[SEP]``
    one for each of the ``tiles``, row by row."""

    scale: Annotated[float, Field(ge=1, le=4)] = 1.3
    steps: Annotated[WholeNumber, Field(ge=0, le=50)] = 0
    upscaler: HiresUpscaler = "ESRGAN"
    strength: Strength = 0.3
    prompt: Annotated[Text, AfterValidator(_without_marks)] = ""
    tiles: HiresTiles = "auto"

    @property
    def needs_tiles(self) -> bool:
        """Whether it is asked for in tiles."""
        return self.tiles == "on" or SEPARATOR in self.prompt


HIRES_INPUTS: Mapping[str, str] = MappingProxyType(
    {
        "scale": "hr_scale",
        "steps": "hr_steps",
        "upscaler": "hr_upscaler",
        "strength": "denoising_strength",
        "prompt": "hr_prompt",
        "tiles": "hr_tiles",
    }
)
"""The input of every field of :class:`Hires`."""


@dataclass(frozen=True, config=STRICT)
class ImageRequest:
    """Everything that decides what the pictures look like. ``width`` and ``height`` are those of the first pass, in
    pixels; ``aspect_ratio`` and ``megapixels`` are what the user asked for.

    An input of ``predict.py`` with the name of a field becomes that field; :func:`modules.request.parser.build_request`
    makes fields of the other inputs.
    """

    prompt: Text
    width: Side
    height: Side
    seed: Seed
    negative_prompt: Text = ""
    aspect_ratio: AspectRatio = "1:1"
    megapixels: Megapixels = "1"
    num_outputs: Annotated[WholeNumber, Field(ge=1, le=4)] = 1
    num_inference_steps: Annotated[WholeNumber, Field(ge=1, le=50)] = 28
    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 3.5
    sampler: Sampler = SAMPLERS[0]
    scheduler: Schedule = SCHEDULES[0]
    go_fast: bool = False
    image: Image.Image | None = None
    original: Original | None = None
    """What the file of ``image`` has beside it, where it keeps its pixels."""
    mask: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()
    """Pictures that the model looks at beside the prompt."""
    control_image: Image.Image | None = None
    prompt_strength: Strength = 0.8
    inpaint_only_masked: bool = True
    inpaint_only_masked_padding: Annotated[WholeNumber, Field(ge=0, le=256)] = 32
    outpaint: Text = ""
    """What ``image`` and ``mask`` were extended by, as :mod:`modules.request.outpaint` writes it."""
    hires: Hires | None = None
    adetailer: tuple[AdetailerUnit, ...] = ()
    ad_mask: Image.Image | None = None
    """White where the detail pass repaints, beside what its detectors find."""
    scale: Annotated[float, Field(ge=1, le=8)] = 1.0
    upscaler: Text = ""
    face_enhance: bool = False
    output_format: OutputFormat = "webp"
    output_quality: Annotated[WholeNumber, Field(ge=0, le=100)] = 80
    prompt_upsampling: bool = False
    prompt_upsampling_seed: Seed = 0
    loras: tuple[LoraUse, ...] = ()
    """For all pictures. Tags in a prompt of the detail pass are for its regions alone."""
    original_prompt: str = ""
    """The user's prompt, if a language model rewrote it or failed to; ``prompt_note`` says which."""
    prompt_note: str = ""
    notices: tuple[str, ...] = ()
    """What of the inputs is not honoured, a line each."""
    stage_options: Mapping[str, object] = Field(default_factory=dict)
    """By the names of stages, what :meth:`modules.pipeline.base.Stage.options` made of their inputs."""

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not says_something(prompt):
            raise ValueError("is empty; say in words what the picture should show")
        return prompt

    @field_validator("height")
    @classmethod
    def _has_a_usual_shape(cls, height: int, fields: ValidationInfo) -> int:
        width = fields.data.get("width", height)
        if max(width, height) > (1 + MAX_SQUEEZE) * MAX_ASPECT_RATIO * min(width, height):  # pictures are fitted
            raise ValueError(f"is {height} beside a width of {width}; the ratio may be at most {MAX_ASPECT_RATIO}:1")
        if width * height > MAX_AREA:
            raise ValueError(f"is {height} beside a width of {width}; together at most {MAX_AREA} pixels are drawn")
        return height

    @field_validator("mask")
    @classmethod
    def _fits_the_image(cls, mask: Image.Image | None, fields: ValidationInfo) -> Image.Image | None:
        image = fields.data.get("image")
        if mask is not None and image is None:
            raise ValueError("needs an image to paint into; give the input 'image' too")
        if mask is not None and image is not None and (problem := shape_problem(mask, image)):
            raise ValueError(problem)
        return mask

    @field_validator("ad_mask")
    @classmethod
    def _fits_the_picture(cls, mask: Image.Image | None, fields: ValidationInfo) -> Image.Image | None:
        given = fields.data
        if mask is None or not {"width", "height"} <= given.keys():
            return mask
        image = given.get("image") or Image.new("L", (given["width"], given["height"]))
        if problem := shape_problem(mask, image):
            raise ValueError(problem)
        return mask

    def uses_ad_mask(self, number: int) -> bool:
        """Whether unit ``number`` (from 0) repaints what ``ad_mask`` shows: each that names it as its model; where none
        does, the first."""
        named = any(unit.model == OWN_MASK for unit in self.adetailer)
        own = self.adetailer[number].model == OWN_MASK if named else number == 0
        return self.ad_mask is not None and own

    @property
    def keeps_image(self) -> bool:
        """Whether the pictures have the size of the image, and its pixels where nothing is drawn."""
        return self.image is not None and (
            self.prompt_strength == 0 or (self.mask is not None and self.inpaint_only_masked)
        )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the pictures after the first pass."""
        return self.image.size if self.image and self.keeps_image else (self.width, self.height)

    @property
    def lora_references(self) -> tuple[str, ...]:
        """Every LoRA that the pictures or their regions use, once."""
        regions = (prompt for unit in self.adetailer for prompt in region_prompts(unit.prompt, self.prompt))
        uses = (*self.loras, *(use for prompt in regions for use in in_region(prompt, ())))
        return tuple(dict.fromkeys(use.reference for use in uses))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every picture: the request's own, and the following numbers."""
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.num_outputs))


def shape_problem(mask: Image.Image, image: Image.Image) -> str:
    """What is wrong with the shape of a mask for this image; "" for nothing."""
    if _same_shape(mask.size, image.size):
        return ""
    return f"must have the size of the image ({_size(image)}) or its shape, not {_size(mask)}"


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes, width and height, have one aspect ratio, but for rounding."""
    return max(one[0] * other[1], one[1] * other[0]) <= (1 + MAX_SQUEEZE) * min(one[0] * other[1], one[1] * other[0])


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
