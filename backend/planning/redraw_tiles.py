"""How Hires fix cuts a large picture into tiles of the model's native size: for the stage that draws them, and for the
plan that counts them. Pure, without torch."""

from __future__ import annotations

import math

OVERLAP = 0.25
"""The least share of a tile's side that it has in common with its neighbour."""
MOST_IN_ONE_PASS = 4
"""A picture of more than the native area times this is drawn in tiles: of more than twice the native side, up to which
one pass is usual. Beyond it models repeat themselves."""
MOST_SCALE = 4
"""Of Hires fix: the largest factor of the native side that tiles are planned for."""

Span = tuple[int, int]


def redraw_spans(length: int, side: int, multiple: int = 1, overlap: float = OVERLAP) -> tuple[Span, ...]:
    """Cuts ``length`` pixels into as few spans (start, stop) of one length as possible, at most ``side`` long.

    The first begins at 0, the last ends at ``length``, and neighbours share at least the share ``overlap`` of a span.
    All are multiples of ``multiple``, if the given lengths are.
    """
    tile = min(side, length)
    step = max(multiple, int(tile * (1 - overlap)) // multiple * multiple)
    count = 1 + math.ceil((length - tile) / step)
    starts = [index * (length - tile) // max(1, count - 1) // multiple * multiple for index in range(count)]
    return tuple((start, start + tile) for start in starts)


def count_redraw_tiles(width: int, height: int, side: int) -> int:
    """For a picture of that size in tiles of at most ``side`` pixels a side."""
    return len(redraw_spans(width, side)) * len(redraw_spans(height, side))
