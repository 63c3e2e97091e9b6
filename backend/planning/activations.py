"""What a prediction does, step by step: which models it needs at once, for how much work, and with how much memory
beside them.

Pure, without torch. The bytes are a function of the workload with coefficients of the family
(``backend/planning/model_specs.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backend.planning.model_specs import ModelSpec

UPSCALE_CONTEXT, UPSCALE_OVERLAP = 32, 8
"""Pixels that ``modules/upscaling/tiled.py`` gives a tile on every side, and that neighbouring tiles share."""
SMALLEST_UPSCALE_TILE = 32
"""Side in pixels; smaller ones would be nearly all context."""
TILING_WORK = 1.6
"""Work of an autoencoder in tiles against the whole picture: diffusers lets them overlap by a quarter (9 tiles of
512 for 1024)."""


def halved_tiles(side: int) -> list[int]:
    """Sides in pixels that the upscaler's tiles may have instead of ``side``, it first: a half and a quarter, while
    not too small."""
    return [side, *(tile for tile in (side // 2, side // 4) if tile >= SMALLEST_UPSCALE_TILE)]


@dataclass(frozen=True)
class Workload:
    """The largest prediction that the plan must hold. Sizes are pixels.

    ``hires`` is the size of the second pass (None = off). ``detail_crop`` is the side at which a detail is repainted (0
    = off), ``details`` how many a picture is expected to have. The strengths are the shares of the steps that those
    passes run. ``scale`` upscales at the end (1 = off) in tiles of ``upscale_tile``.
    """

    width: int
    height: int
    outputs: int = 1
    steps: int = 28
    hires: tuple[int, int] | None = None
    hires_strength: float = 0.4
    detail_crop: int = 0
    details: int = 1
    detail_strength: float = 0.4
    scale: float = 1.0
    upscale_tile: int = 192


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

    def denoise(self, stage: str, width: int, height: int, strength: float, lower: str) -> Step:
        models, pixels = self.models, self.models.token_pixels
        tokens = models.text_tokens + math.ceil(width / pixels) * math.ceil(height / pixels)
        forwards = max(1, int(self.workload.steps * strength))
        return self.step(stage, "denoise", (models.denoiser,), tokens, self.workload.outputs, forwards, lower)

    def repaint(self, stage: str, width: int, height: int, strength: float, lower: str) -> list[Step]:
        return [
            self.autoencoder(stage, "encode_image", width, height, lower),
            self.denoise(stage, width, height, strength, lower if self.workload.outputs == 1 else "num_outputs"),
            self.autoencoder(stage, "decode", width, height, lower),
        ]

    def upscale(self, stage: str, width: int, height: int) -> Step:
        side_of_tile = self.workload.upscale_tile
        tiles = [
            max(1, math.ceil((side - UPSCALE_OVERLAP) / (side_of_tile - UPSCALE_OVERLAP))) for side in (width, height)
        ]
        pixels = math.prod(min(side, side_of_tile) + 2 * UPSCALE_CONTEXT for side in (width, height))
        forwards = self.workload.outputs * math.prod(tiles)
        return self.step(stage, "upscale", ("upscaler",), pixels, 1, forwards, "upscale_tile_size")


def prediction_steps(workload: Workload, models: ModelSpec, new_prompt: bool = True) -> tuple[Step, ...]:
    """The steps of one prediction in order. Without ``new_prompt`` the embeddings are cached and no text encoder
    runs.

    The autoencoder takes one picture at a time, the other models all ``outputs`` together.
    """
    w, make, tokens = workload, _StepMaker(workload, models), models.text_tokens
    steps = []
    if new_prompt and "prompt_upsampler" in models.components:
        # as many tokens as the text encoder takes, one forward each
        steps.append(make.step("prompt", "write", ("prompt_upsampler",), tokens, 1, tokens, "prompt_upsampler"))
    if new_prompt:
        steps.append(make.step("encode", "encode", models.encoders, tokens, 1, 1, ""))
    size_inputs = "num_outputs" if w.outputs > 1 else "width and height"
    steps.append(make.denoise("denoise", w.width, w.height, 1, size_inputs))
    steps.append(make.autoencoder("decode", "decode", w.width, w.height, "width and height"))
    width, height = w.width, w.height
    if w.hires:
        steps.append(make.upscale("hires", width, height))
        steps += make.repaint("hires", *w.hires, w.hires_strength, "hr_scale")
        width, height = w.hires
    if w.detail_crop:
        steps.append(make.step("detect", "detect", ("detectors",), w.outputs, 1, 1, "num_outputs"))
        for _ in range(w.details):
            steps += make.repaint("detail", w.detail_crop, w.detail_crop, w.detail_strength, "adetailer")
    passes = math.ceil(math.log(w.scale, models.upscale_factor) - 1e-9)
    for index in range(passes):  # the network runs again on its own result, reduced to what the next run needs
        share = w.scale / models.upscale_factor ** (passes - index) if index else 1
        steps.append(make.upscale("upscale", math.ceil(width * share), math.ceil(height * share)))
    if "face_restorer" in models.components:
        steps.append(make.step("face_enhance", "restore", ("face_restorer",), 1, 1, w.outputs, "face_enhance"))
    if "safety_checker" in models.components:
        steps.append(make.step("safety_check", "check", ("safety_checker",), w.outputs, 1, 1, "num_outputs"))
    return tuple(steps)
