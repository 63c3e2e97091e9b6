"""Tiles of a picture as a batch: cut, blended, and given to the denoiser a few at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from modules.diffusion.tile_batches import InBatches, agreeing, blend, cut, stitched, weights_of
from modules.diffusion.tiles import TileGrid, tile_grid

GRID = tile_grid((160, 96), 64, 16)


def test_tiles_have_one_size_and_lie_on_the_grid_row_by_row() -> None:
    assert str(GRID) == "3x2" and len(GRID) == 6
    assert (GRID.size, GRID.tile_size) == ((160, 96), (64, 64))
    assert list(GRID.boxes())[:4] == [(0, 0, 64, 64), (48, 0, 112, 64), (96, 0, 160, 64), (0, 32, 64, 96)]


def test_a_picture_that_is_narrower_than_a_tile_has_tiles_of_its_width() -> None:
    grid = tile_grid((32, 160), 64, 16)
    assert grid.tile_size == (32, 64) and str(grid) == "1x3"


@pytest.mark.parametrize("grid", [GRID, tile_grid((64, 64), 64, 16), tile_grid((4096, 2048), 1024, 16)])
def test_weights_add_up_to_one_and_fall_towards_the_border(grid: TileGrid) -> None:
    total = torch.zeros(grid.size[0])
    for (start, stop), weight in zip(grid.columns, weights_of(grid.columns), strict=True):
        total[start:stop] += weight
    assert_close(total, torch.ones(grid.size[0]))
    first = weights_of(grid.columns)[0]
    assert len(grid.columns) == 1 or first[-1] < 0.05, "a tile may not end at an edge"


@pytest.mark.parametrize("unit", [1, 8])
def test_what_is_cut_and_blended_is_the_whole_again(unit: int) -> None:
    whole = torch.randn(1, 4, 96 // unit, 160 // unit)
    tiles = cut(whole, GRID, unit)
    assert tiles.shape == (6, 4, 64 // unit, 64 // unit)
    assert_close(blend(tiles, GRID, unit), whole)
    assert_close(agreeing(tiles, GRID, unit), tiles)


def test_after_blending_tiles_agree_where_they_overlap() -> None:
    tiles = agreeing(torch.randn(6, 1, 64, 64), GRID, 1)
    assert_close(tiles[0][:, :, 48:], tiles[1][:, :, :16])
    assert_close(tiles[0][:, 32:], tiles[3][:, :32])


def test_stitched_tiles_of_a_picture_are_the_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    assert np.array_equal(np.asarray(stitched(list(GRID.cut(Image.fromarray(pixels))), GRID)), pixels)


class TestInBatches:
    """The calls that diffusers' pipelines make; the answers are those of one call with everything."""

    def flux(self, hidden_states: torch.Tensor, img_ids: torch.Tensor, timestep: torch.Tensor, **other: Any) -> Any:
        assert len(timestep) == len(hidden_states) == len(other["encoder_hidden_states"]) <= 2
        assert img_ids.shape[-2] == hidden_states.shape[1], "positions are shared, or one list for each picture"
        return (hidden_states * timestep[:, None, None] + other["encoder_hidden_states"].sum() * 0,)

    @pytest.mark.parametrize("ids", [torch.zeros(5, 3), torch.zeros(5, 5, 4)])
    def test_flux_with_as_many_tokens_as_pictures(self, ids: torch.Tensor) -> None:
        told: list[tuple[int, int]] = []
        network = InBatches(5, 2, lambda done, total, latents: told.append((done, total))).begin(self.flux, 2)
        states, times = torch.randn(5, 5, 8), torch.rand(5)
        words = torch.randn(5, 7, 8)
        for step in (1, 2):
            [found] = network(hidden_states=states, img_ids=ids, timestep=times, encoder_hidden_states=words)
            network.after_step(step, 2, None)
            assert_close(found, states * times[:, None, None])
        assert told == [(1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6), (6, 6)]

    def test_a_unet_with_a_second_row_for_what_to_avoid(self) -> None:
        def unet(sample: torch.Tensor, time: torch.Tensor, added_cond_kwargs: dict[str, torch.Tensor]) -> Any:
            assert len(sample) == len(added_cond_kwargs["time_ids"]) <= 4 and time.ndim == 0
            return (sample + added_cond_kwargs["time_ids"].sum(dim=1)[:, None, None, None],)

        network = InBatches(3, 2, lambda done, total, latents: None).begin(unet, 1)
        sample, ids = torch.randn(6, 4, 8, 8), torch.arange(36.0).view(6, 6)
        [found] = network(sample, torch.tensor(3), added_cond_kwargs={"time_ids": ids})
        assert_close(found, sample + ids.sum(dim=1)[:, None, None, None])

    def test_lists_of_pictures(self) -> None:
        def listed(latents: list[torch.Tensor], time: torch.Tensor, words: list[torch.Tensor]) -> Any:
            assert len(latents) == len(time) == len(words) <= 2
            return ([one * when for one, when in zip(latents, time, strict=True)],)

        network = InBatches(3, 2, lambda done, total, latents: None).begin(listed, 1)
        latents, times = list(torch.randn(3, 4, 1, 8, 8)), torch.rand(3)
        [found] = network(latents, times, [torch.zeros(2)] * 3)
        assert_close(torch.stack(found), torch.stack(latents) * times.view(3, 1, 1, 1, 1))
