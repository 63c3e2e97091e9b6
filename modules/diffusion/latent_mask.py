"""An inpainting mask at the size of the latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def latent_mask(masks: Sequence[Image.Image], rows: int, columns: int, differential: bool) -> torch.Tensor:
    """N masks (L, white is repainted) to N x 1 x rows x columns, float32 in 0..1.

    A latent is repainted as far as any of its pixels is white, so that no edge of the old picture stays. With
    ``differential`` it has the brightness of its brightest pixel, else it is 0 or 1.
    """
    planes = []
    for mask in masks:
        step_x, step_y = math.ceil(mask.width / columns), math.ceil(mask.height / rows)
        pixels = np.asarray(mask.resize((columns * step_x, rows * step_y)), np.float32) / 255
        planes.append(pixels.reshape(rows, step_y, columns, step_x).max(axis=(1, 3)))
    plane = torch.from_numpy(np.stack(planes))[:, None]
    return plane if differential else plane.round()


def editable(mask: torch.Tensor, done: int, total: int) -> torch.Tensor:
    """Where a differential mask lets the picture change after ``done`` of ``total`` steps: 0 or 1, of the mask's shape.

    Differential diffusion (Levin and Fried, 2023): the darker a place, the later it may change.
    """
    return (mask > 1 - done / total).to(mask)
