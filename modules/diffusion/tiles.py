"""A large picture as overlapping tiles of the size that a model was trained on. Light: without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from backend.planning.redraw_tiles import OVERLAP, Span, redraw_spans

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, as in PIL."""


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a picture, row by row. All have one size; ``columns`` and ``rows`` are where they begin and end."""

    columns: tuple[Span, ...]
    rows: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.columns) * len(self.rows)

    def __str__(self) -> str:
        return f"{len(self.columns)}x{len(self.rows)}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return self.columns[-1][1], self.rows[-1][1]

    @property
    def tile_size(self) -> tuple[int, int]:
        """Width and height of every tile in pixels."""
        return self.columns[0][1], self.rows[0][1]

    def boxes(self) -> Iterator[Box]:
        for top, bottom in self.rows:
            for left, right in self.columns:
                yield left, top, right, bottom

    def cut(self, image: Image.Image) -> tuple[Image.Image, ...]:
        """The tiles of a picture, which is resized to the grid first."""
        whole = image if image.size == self.size else image.resize(self.size, Image.Resampling.LANCZOS)
        return tuple(whole.crop(box) for box in self.boxes())


@dataclass(frozen=True)
class Tiles:
    """The pictures of a batch are the tiles of one picture, ``batch`` of which are denoised at a time.

    ``source`` is the whole picture where its latents are resized, at the size that it has before.
    """

    grid: TileGrid
    batch: int
    source: Image.Image | None = None


def tile_grid(size: tuple[int, int], side: int, multiple: int, overlap: float = OVERLAP) -> TileGrid:
    """As few tiles as possible of at most ``side`` pixels a side, which overlap by at least the share ``overlap``.

    ``size`` is width and height of the picture. All sides and places are multiples of ``multiple``, if the given sizes
    are.
    """
    columns, rows = (redraw_spans(length, side, multiple, overlap) for length in size)
    return TileGrid(columns, rows)
