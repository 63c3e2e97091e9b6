"""What a prediction does, step by step: which models it needs at once, for how much work, and with how much memory
beside them.

Pure, without torch. The bytes are a function of the workload with coefficients of the family
(``backend/planning/model_specs.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backend.planning.model_specs import ModelSizes

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


def prediction_steps(workload: Workload, models: ModelSizes, new_prompt: bool = True) -> tuple[Step, ...]:
    """The steps of one prediction in order. Without ``new_prompt`` the embeddings are remembered and no text encoder
    runs.

    The autoencoder takes one picture at a time, the other models all ``outputs`` together.
    """
    w, costs = workload, models.costs
    size_inputs = "num_outputs" if w.outputs > 1 else "width and height"

    def step(
        stage: str, kind: str, components: tuple[str, ...], x: float, batch: int, forwards: int, lower: str
    ) -> Step:
        memory = batch * costs[kind].memory(x)
        return Step(stage, components, int(memory), int(memory), batch * costs[kind].work(x), forwards, lower)

    def autoencoder(stage: str, kind: str, width: int, height: int, lower: str) -> Step:
        tile = min(width, models.vae_tile) * min(height, models.vae_tile)
        whole, tiled = costs[kind].memory(width * height), costs[kind].memory(tile)
        return Step(stage, ("vae",), int(whole), int(tiled), costs[kind].work(width * height), w.outputs, lower)

    def denoise(stage: str, width: int, height: int, strength: float, lower: str) -> Step:
        tokens = models.text_tokens + math.ceil(width / models.token_pixels) * math.ceil(height / models.token_pixels)
        return step(stage, "denoise", (models.denoiser,), tokens, w.outputs, max(1, int(w.steps * strength)), lower)

    def repaint(stage: str, width: int, height: int, strength: float, lower: str) -> list[Step]:
        return [
            autoencoder(stage, "encode_image", width, height, lower),
            denoise(stage, width, height, strength, lower if w.outputs == 1 else "num_outputs"),
            autoencoder(stage, "decode", width, height, lower),
        ]

    def upscale(stage: str, width: int, height: int) -> Step:
        tiles = [
            max(1, math.ceil((side - UPSCALE_OVERLAP) / (w.upscale_tile - UPSCALE_OVERLAP))) for side in (width, height)
        ]
        pixels = math.prod(min(side, w.upscale_tile) + 2 * UPSCALE_CONTEXT for side in (width, height))
        return step(stage, "upscale", ("upscaler",), pixels, 1, w.outputs * math.prod(tiles), "upscale_tile_size")

    steps = [step("encode", "encode", models.encoders, models.text_tokens, 1, 1, "")] if new_prompt else []
    if (
        new_prompt and "prompt_upsampler" in models.components
    ):  # as many tokens as the text encoder takes, one forward each
        steps.insert(
            0,
            step(
                "prompt", "write", ("prompt_upsampler",), models.text_tokens, 1, models.text_tokens, "prompt_upsampler"
            ),
        )
    steps += [
        denoise("denoise", w.width, w.height, 1, size_inputs),
        autoencoder("decode", "decode", w.width, w.height, "width and height"),
    ]
    width, height = w.width, w.height
    if w.hires:
        steps += [upscale("hires", width, height), *repaint("hires", *w.hires, w.hires_strength, "hr_scale")]
        width, height = w.hires
    if w.detail_crop:
        steps.append(step("detect", "detect", ("detectors",), w.outputs, 1, 1, "num_outputs"))
        for _ in range(w.details):
            steps += repaint("detail", w.detail_crop, w.detail_crop, w.detail_strength, "adetailer")
    passes = math.ceil(math.log(w.scale, models.upscale_factor) - 1e-9)
    for index in range(passes):  # the network runs again on its own result, reduced to what the next run needs
        share = w.scale / models.upscale_factor ** (passes - index) if index else 1
        steps.append(upscale("upscale", math.ceil(width * share), math.ceil(height * share)))
    if "face_restorer" in models.components:
        steps.append(step("face_enhance", "restore", ("face_restorer",), 1, 1, w.outputs, "face_enhance"))
    return tuple(steps)
