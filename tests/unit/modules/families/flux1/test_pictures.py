"""What the variants of FLUX.1 read of pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from modules.families.flux1.pictures import binary_masks, edges_of, masks_as_channels, reference_positions


def test_every_pixel_of_a_mask_is_a_channel_of_its_latent() -> None:
    mask = torch.arange(2 * 4 * 6).reshape(2, 1, 4, 6).float()
    channels = masks_as_channels(mask, 2)
    assert channels.shape == (2, 4, 2, 3)
    assert channels[0, :, 1, 2].tolist() == [16, 17, 22, 23], "rows 2 and 3, columns 4 and 5"


def test_a_mask_is_black_or_white() -> None:
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    assert binary_masks([grey], (4, 1)).flatten().tolist() == [0, 0, 1, 1]


def test_the_positions_of_a_reference_picture_are_rows_and_columns_behind_its_number() -> None:
    assert reference_positions(2, 2, 1).tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]


def test_edges_are_found_and_what_is_edges_already_stays() -> None:
    picture = Image.new("RGB", (64, 48), "grey")
    picture.paste("white", (16, 12, 48, 36))
    edges = edges_of(picture)
    found = np.asarray(edges.convert("L"))
    assert edges.mode == "RGB" and set(np.unique(found)) == {0, 255}
    assert found[24, 13:19].any() and not found[24, 20:44].any()
    assert edges_of(edges) is edges
