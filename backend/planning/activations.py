"""What a prediction does, step by step: which models it needs at once, for how much work, and with how much memory
beside them.

Pure, without torch. The bytes are a function of the workload with coefficients of the family
(``backend/planning/model_specs.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from backend.planning.model_specs import ModelSpec
from backend.planning.pictures import picture_bytes
from backend.planning.redraw_tiles import count_redraw_tiles
from backend.planning.upscale_tiles import CPU_TILE, count_tiles, smaller_tiles

BLENDED_BYTES = 3 * 4
"""Of a pixel in the row of tiles that is blended on the device: three colours in float32."""
CANVAS_BYTES = 6
"""Of a pixel of all tiles: latents, noise and original of a picture that is drawn in tiles, in the precisions that they
pass through. FLUX.2 has the most latents, 128 for 16 x 16 pixels; others have a half of that and less."""
OUTLINE_BYTES = 6
"""Of a pixel of an outline on the device, in float32, as bits and as bytes. Those of pictures of the native size are
part of what a detector costs."""
OUTLINED_PIXELS = 2**22
"""Outlines of detections are made on the device for so many pixels at a time, and those of a larger picture on the
host."""
SOURCE_BYTES = 3
"""Of a pixel of a picture that is finished: the upscaler reads its tiles from the device."""
TILING_WORK = 1.6
"""Work of an autoencoder in tiles against the whole picture: diffusers lets them overlap by a quarter (9 tiles of
512 for 1024)."""


@dataclass(frozen=True)
class Workload:
    """The largest prediction that the plan must hold. Sizes are pixels.

    ``references`` are the pictures that the denoiser reads beside those that the model needs; one that is repainted by
    a mask counts as one, where the denoiser reads it. ``hires`` is the size of the second pass (None = off), drawn in
    tiles with ``hires_tiles``. ``detail_crop`` is the side at which a detail is repainted (0 = off), ``details`` how
    many a picture is expected to have. The strengths are the shares of the steps that those passes run. ``scale``
    upscales at the end (1 = off) in tiles of ``upscale_tile``. The embeddings of ``cached_prompts`` prompts stay on the
    device, and so do LoRA files of ``lora_bytes``. ``finished`` is the size of a picture that is there already: nothing
    is drawn at first, its details are repainted, and it is upscaled.
    """

    width: int
    height: int
    outputs: int = 1
    steps: int = 28
    references: int = 0
    hires: tuple[int, int] | None = None
    hires_strength: float = 0.4
    hires_tiles: bool = False
    detail_crop: int = 0
    details: int = 1
    detail_strength: float = 0.4
    scale: float = 1.0
    upscale_tile: int = 1024
    cached_prompts: int = 0
    lora_bytes: int = 0
    finished: tuple[int, int] | None = None

    @property
    def picture_bytes(self) -> int:
        """Host memory for pictures that are finished. Those that are drawn are small beside the models."""
        if self.finished is None:
            return 0
        width, height = self.finished
        return picture_bytes(self.finished, (round(width * self.scale), round(height * self.scale)), self.outputs)


@dataclass(frozen=True)
class Step:
    """One stretch of a prediction during which the same models are borrowed together; the last named one does the work.

    ``memory`` is bytes of activations, ``tiled_memory`` the same with the autoencoder in tiles. ``work`` is the
    floating point operations of one forward over all pictures. ``lower`` names the input that makes the step smaller
    ("" = none does).
    """

    stage: str
    components: tuple[str, ...]
    memory: int
    tiled_memory: int
    work: float
    forwards: int
    lower: str


@dataclass(frozen=True)
class _StepMaker:
    """Makes the steps of one workload; sizes are in pixels."""

    workload: Workload
    models: ModelSpec

    def step(
        self, stage: str, kind: str, components: tuple[str, ...], x: float, batch: int, forwards: int, lower: str
    ) -> Step:
        cost = self.models.costs[kind]
        memory = int(batch * cost.memory(x))
        return Step(stage, components, memory, memory, batch * cost.work(x), forwards, lower)

    def autoencoder(self, stage: str, kind: str, width: int, height: int, lower: str) -> Step:
        """One picture at a time."""
        cost, tile = self.models.costs[kind], min(width, self.models.vae_tile) * min(height, self.models.vae_tile)
        whole, tiled = int(cost.memory(width * height)), int(cost.memory(tile))
        return Step(stage, ("vae",), whole, tiled, cost.work(width * height), self.workload.outputs, lower)

    def denoise(self, stage: str, width: int, height: int, strength: float, lower: str, masked: bool = False) -> Step:
        """``masked``: only a part of the picture is repainted, whatever the request's other pictures show."""
        models, read = self.models, self.models.pictures
        views = 2 if masked and read.repainted else 1
        tokens = picture_tokens(width, height, models, views, 0 if masked else self.workload.references)
        forwards = max(1, int(self.workload.steps * strength))
        return self.step(stage, "denoise", (models.denoiser,), tokens, self.workload.outputs, forwards, lower)

    def first_pass(self) -> list[Step]:
        w, steps = self.workload, []
        if pictures := self.models.pictures.needed + w.references:
            read = self.autoencoder("encode_image", "encode_image", w.width, w.height, "width and height")
            steps.append(replace(read, forwards=pictures))  # once for all outputs
        size_inputs = "num_outputs" if w.outputs > 1 else "width and height"
        steps.append(self.denoise("denoise", w.width, w.height, 1, size_inputs))
        return [*steps, self.autoencoder("decode", "decode", w.width, w.height, "width and height")]

    def detect(self) -> Step:
        w = self.workload
        step = self.step("detect", "detect", ("detectors",), w.outputs, 1, 1, "num_outputs")
        if not w.finished:
            return step
        memory = step.memory + OUTLINE_BYTES * min(OUTLINED_PIXELS, w.finished[0] * w.finished[1])
        return replace(step, memory=memory, tiled_memory=memory, lower="image")

    def repaint(
        self, stage: str, width: int, height: int, strength: float, lower: str, masked: bool = False
    ) -> list[Step]:
        denoised = lower if self.workload.outputs == 1 else "num_outputs"
        return [
            self.autoencoder(stage, "encode_image", width, height, lower),
            self.denoise(stage, width, height, strength, denoised, masked),
            self.autoencoder(stage, "decode", width, height, lower),
        ]

    def repaint_tiles(self, stage: str, width: int, height: int, strength: float, lower: str) -> list[Step]:
        """One tile at a time is what it takes at least; the latents of all tiles are there too."""
        side, outputs = self.models.native, self.workload.outputs
        tiles = outputs * count_redraw_tiles(width, height, side)
        one = replace(self, workload=replace(self.workload, outputs=1, references=0))
        steps = one.repaint(stage, min(side, width), min(side, height), strength, lower)
        canvas = canvas_bytes(width, height, self.models)
        return [
            replace(
                step,
                memory=step.memory + canvas,
                tiled_memory=step.tiled_memory + canvas,
                forwards=step.forwards * tiles,
            )
            for step in steps
        ]

    def upscale(self, stage: str, width: int, height: int) -> Step:
        tile, cost = self.workload.upscale_tile, self.models.costs["upscale"]
        counted = count_tiles(width, height, tile)
        blended = BLENDED_BYTES * width * min(height, tile) * self.models.upscale_factor**2
        source = SOURCE_BYTES * width * height if self.workload.finished else 0
        memory = int(cost.memory(counted.largest)) + blended + source
        work, forwards = cost.work(counted.total) / counted.tiles, self.workload.outputs * counted.tiles
        return Step(stage, ("upscaler",), memory, memory, work, forwards, "upscale_tile_size")


def picture_tokens(width: int, height: int, models: ModelSpec, views: int = 1, references: int = 0) -> int:
    """What stands before the denoiser for one picture: the tokens of its text, its own ``views`` times, and those of
    the pictures that the model needs and of ``references`` more."""
    image = math.ceil(width / models.token_pixels) * math.ceil(height / models.token_pixels)
    return models.text_tokens + views * image + (models.pictures.needed + references) * models.pictures.tokens


def canvas_bytes(width: int, height: int, models: ModelSpec) -> int:
    """What a picture of this size that is drawn in tiles takes on the device beside the tiles that are denoised: the
    latents of all tiles, and the prompt of each."""
    tiles = count_redraw_tiles(width, height, models.native)
    return tiles * (CANVAS_BYTES * models.native**2 + models.prompt_bytes)


def upscale_tile_sides(workload: Workload, on_cpu: bool) -> list[int]:
    """Sides in pixels that the upscaler's tiles may have, the largest first: no larger than the workload allows, than
    its pictures, and than is of use on a CPU. Only the first where nothing is upscaled."""
    sides = [
        *(workload.finished or (workload.width, workload.height)),
        *((workload.hires or ()) if workload.scale > 1 else ()),
    ]
    largest = min(workload.upscale_tile, max(sides), *((CPU_TILE,) if on_cpu else ()))
    return smaller_tiles(largest) if workload.scale > 1 or workload.hires else [largest]


def prediction_steps(workload: Workload, models: ModelSpec, new_prompt: bool = True) -> tuple[Step, ...]:
    """The steps of one prediction in order. Without ``new_prompt`` the embeddings are cached and no text encoder
    runs.

    The autoencoder takes one picture at a time, the other models all ``outputs`` together.
    """
    w, make, tokens = workload, _StepMaker(workload, models), models.text_tokens
    steps = []
    if new_prompt and models.writers[-1] in models.components:
        # as many tokens as the text encoder takes, one forward each; where it writes itself, few requests ask for it
        forwards = tokens if models.writers == ("prompt_upsampler",) else 1
        steps.append(make.step("prompt", "write", models.writers, tokens, 1, forwards, "prompt_upsampler"))
    if new_prompt:
        steps.append(make.step("encode", "encode", models.encoders, tokens, 1, 1, ""))
    if not w.finished:
        steps += make.first_pass()
    width, height = w.finished or (w.width, w.height)
    if w.hires:
        steps.append(make.upscale("hires", width, height))
        repaint = make.repaint_tiles if w.hires_tiles else make.repaint
        steps += repaint("hires", *w.hires, w.hires_strength, "hr_scale")
        width, height = w.hires
    if w.detail_crop:
        steps.append(make.detect())
        for _ in range(w.details):
            steps += make.repaint("detail", w.detail_crop, w.detail_crop, w.detail_strength, "adetailer", masked=True)
    passes = math.ceil(math.log(w.scale, models.upscale_factor) - 1e-9)
    for index in range(passes):  # the network runs again on its own result, reduced to what the next run needs
        share = w.scale / models.upscale_factor ** (passes - index) if index else 1
        steps.append(make.upscale("upscale", math.ceil(width * share), math.ceil(height * share)))
    if "face_restorer" in models.components:
        steps.append(make.step("face_enhance", "restore", ("face_restorer",), 1, 1, w.outputs, "face_enhance"))
    if "safety_checker" in models.components:
        steps.append(make.step("safety_check", "check", ("safety_checker",), w.outputs, 1, 1, "num_outputs"))
    return tuple(steps)
