"""What the variants of FLUX.1 read of pictures: masks as channels, the positions of reference pictures, edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

WHITE = 128
"""Of 255: what is at least as bright is painted by Fill (as in diffusers' ``VaeImageProcessor``)."""
EDGE_THRESHOLDS = 50, 200
"""Of OpenCV's Canny, as Black Forest Labs' own code has them."""
NEARLY = 16
"""Of 255: how far from black and white the pixels of a picture of edges may be."""


def binary_masks(masks: Sequence[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """Masks (L) as N x 1 x height x width, float32: 1 where the picture is painted, else 0."""
    planes = [np.asarray(mask.convert("L").resize(size, Image.Resampling.LANCZOS)) >= WHITE for mask in masks]
    return torch.from_numpy(np.stack(planes))[:, None].float()


def masks_as_channels(masks: torch.Tensor, latent_factor: int) -> torch.Tensor:
    """N x 1 x height x width to N x (factor * factor) x rows x columns: all pixels of a latent are its channels, row by
    row (as in diffusers' ``FluxFillPipeline``)."""
    count, _, height, width = masks.shape
    rows, columns = height // latent_factor, width // latent_factor
    blocks = masks.view(count, rows, latent_factor, columns, latent_factor)
    return blocks.permute(0, 2, 4, 1, 3).reshape(count, latent_factor**2, rows, columns)


def reference_positions(rows: int, columns: int, number: int) -> torch.Tensor:
    """The positions of the tokens of reference picture ``number``, from 1: (rows * columns) x 3. The generated picture
    has the number 0."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.full_like(grid[0], number), *grid], dim=-1).flatten(0, 1)


def edges_of(image: Image.Image) -> Image.Image:
    """The edges of a picture, white on black; one that shows nothing but edges is returned as it is."""
    import cv2

    grey = np.asarray(image.convert("L"))
    if ((grey < NEARLY) | (grey > 255 - NEARLY)).all():
        return image
    return Image.fromarray(cv2.Canny(np.asarray(image.convert("RGB")), *EDGE_THRESHOLDS)).convert("RGB")
