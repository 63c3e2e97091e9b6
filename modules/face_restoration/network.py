"""Restores faces with a network that was trained on one upright face in the middle (GFPGAN, RestoreFormer).

Those who trained it turned every face by its landmarks into the frame of FFHQ. Here a square is cut around the
detector's box, so that an upright face lies as it does there, and a head that is tilted stays tilted.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from backend.core.errors import WeightsError
from modules.detection.detections import Floats
from modules.upscaling.spandrel_loader import read_network

logger = logging.getLogger(__name__)

SIDE = 512
"""Pixels a side that these networks take and give."""
ARCHITECTURES = ("GFPGAN", "RestoreFormer")
CROP, LIFT = 1.65, 0.057
"""A face from forehead to chin takes 310 of the frame's 512 pixels, and its middle lies 29 below the frame's."""
BORDER = (135, 133, 132)
"""Gray that stands for what is outside of the picture, as facexlib has it (xinntao/facexlib,
``face_restoration_helper.py``)."""
FEATHER = 0.125
"""Share of the frame's side over which the restored face fades into the picture."""


class FaceRestorerNetwork(nn.Module):
    """N x 3 x 512 x 512 in and out, RGB from 0 to 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # the noise that the weights bring, not new one: the same picture gives the same faces. RestoreFormer takes no
        # heed of it.
        restored: torch.Tensor = self.network(2 * pixels - 1, return_rgb=False, randomize_noise=False)[0]
        return ((restored + 1) / 2).clamp(0, 1)


def load_face_restorer(path: Path) -> nn.Module:
    """Reads the network in float32 on the CPU. Raises WeightsError when the file is missing, damaged or holds
    something else."""
    advice = f"use {' or '.join(ARCHITECTURES)}"
    model: Any = read_network(path, "face restorer", advice)
    if model.architecture.id not in ARCHITECTURES:
        raise WeightsError(f"{path.name}: is a {model.architecture.name}, which restores no faces; {advice}")
    logger.info("face restorer %s: %s", path.name, model.architecture.name)
    return FaceRestorerNetwork(model.model.float().eval().requires_grad_(False))


def face_square(box: Floats) -> tuple[int, int, int]:
    """Left, top and side in pixels of the square to restore, which may leave the picture, for a face at x1, y1, x2,
    y2."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    side = max(16, round(CROP * max(y2 - y1, 1.2 * (x2 - x1))))
    return round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2 - LIFT * side), side


def feathered(side: int) -> Image.Image:
    """A mask (L) that is 255 in the middle and falls to 0 at the edges."""
    rising = (np.minimum(np.arange(side), np.arange(side)[::-1]) / (FEATHER * side)).clip(0, 1)
    return Image.fromarray((255 * np.minimum.outer(rising, rising)).astype(np.uint8))


def restored(network: nn.Module, image: Image.Image, box: Floats) -> Image.Image:
    """The RGB picture with the face at x1, y1, x2, y2 restored, on the device of the network's parameters.

    Pixels outside of the face's square are the picture's own bytes.
    """
    place = next(network.parameters())
    left, top, side = face_square(box)
    square = Image.new("RGB", (side, side), BORDER)
    square.paste(image, (-left, -top))
    small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    with torch.inference_mode():
        pixels = torch.tensor(small, device=place.device).permute(2, 0, 1)[None].to(place.dtype) / 255
        result = network(pixels)[0].float().cpu()
    face = Image.fromarray(result.mul(255).round().byte().permute(1, 2, 0).numpy()).resize(
        (side, side), Image.Resampling.LANCZOS
    )
    whole = image.copy()
    whole.paste(face, (left, top), feathered(side))
    return whole
