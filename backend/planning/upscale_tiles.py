"""How the upscaler cuts a picture into tiles: for the network that computes them, and for the plan that counts them.
Pure, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONTEXT = 32
"""Pixels of context that the network is given around a tile at most, as far as the picture reaches."""
OVERLAP = 8
"""Pixels that neighbouring tiles share and over which they are blended."""
SMALLEST_TILE = 32
"""Side in pixels; smaller ones would be nearly all context."""
CPU_TILE = 256
"""Larger tiles are no faster on a CPU: 192, 256, 384 and 768 pixels took 7.9, 6.3, 6.9 and 7.0 s for one picture."""

Span = tuple[int, int]


def tile_spans(size: int, tile: int, overlap: int = OVERLAP) -> list[Span]:
    """Cuts ``size`` pixels into as few spans (start, stop) of one length as possible, at most ``tile`` long.

    The first begins at 0, the last ends at ``size``, and neighbours share at least ``overlap`` pixels (fewer than
    ``tile``).
    """
    amount = max(1, math.ceil((size - overlap) / (tile - overlap)))
    length = min(size, math.ceil((size + (amount - 1) * overlap) / amount))
    return [
        (start, start + length) for start in (index * (size - length) // max(1, amount - 1) for index in range(amount))
    ]


def with_context(span: Span, size: int, context: int = CONTEXT, grid: int = 1) -> Span:
    """What the network is given for a span: with context, as far as the picture reaches.

    There are fewer pixels of it above and on the left, so that the tile begins at a multiple of ``grid``.
    """
    first = max(0, span[0] - context)
    return first + -first % grid, min(size, span[1] + context)


def smaller_tiles(side: int) -> list[int]:
    """Sides in pixels that the tiles may have instead of ``side``, it first: each cuts a picture into twice as many
    rows and columns as the one before, while not too small."""
    sides = [side]
    while (half := math.ceil((sides[-1] + OVERLAP) / 2)) >= SMALLEST_TILE and half < sides[-1]:
        sides.append(half)
    return sides


@dataclass(frozen=True)
class TileCount:
    """What the network does for one picture: how many tiles, and the pixels of the largest and of all of them, context
    included."""

    tiles: int
    largest: int
    total: int


def count_tiles(width: int, height: int, tile: int) -> TileCount:
    """For a picture of that size in tiles of at most ``tile`` pixels, context not counted."""
    columns, rows = ([stop - start for start, stop in _given(side, tile)] for side in (width, height))
    # a picture of another size may have tiles with context on every side
    whole = len(columns) == len(rows) == 1
    largest = width * height if whole else math.prod(min(side, tile) + 2 * CONTEXT for side in (width, height))
    return TileCount(len(columns) * len(rows), largest, sum(columns) * sum(rows))


def _given(side: int, tile: int) -> list[Span]:
    return [with_context(span, side) for span in tile_spans(side, tile, min(OVERLAP, tile // 2))]
