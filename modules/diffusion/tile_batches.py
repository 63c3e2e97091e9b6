"""Denoises the tiles of a picture as a batch: a few at a time, and so that they agree where they overlap.

After MultiDiffusion (Bar-Tal et al., 2023): all tiles take a step, then every tile gets the weighted mean of all that
lie over it. Euler's step is linear in the prediction, so that is the step with the mean of the predictions. The weights
fall towards the border of a tile, as in Mixture of Diffusers (Jimenez, 2023), so no tile ends at an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.planning.redraw_tiles import Span
from modules.diffusion.monitor import StepReport
from modules.diffusion.tiles import TileGrid

SHARED = ("img_ids", "txt_ids")
"""Arguments of Flux' transformers that are positions, the same for all pictures where they have two axes."""


def weights_of(spans: tuple[Span, ...]) -> list[torch.Tensor]:
    """One float32 weight vector a span: it rises from the ends over what neighbours share, and the weights of every
    place add up to 1."""
    length = spans[0][1] - spans[0][0]
    shared = [stop - start for (_, stop), (start, _) in zip(spans, spans[1:])]
    rising = torch.arange(length) + 0.5
    raw = torch.minimum(rising, rising.flip(0)).clamp(max=float(max(shared, default=1)))
    total = torch.zeros(spans[-1][1])
    for start, stop in spans:
        total[start:stop] += raw
    return [raw / total[start:stop] for start, stop in spans]


def blend(tiles: torch.Tensor, grid: TileGrid, unit: int = 1) -> torch.Tensor:
    """Tiles, T x channels x rows x columns, to the whole, 1 x channels x rows x columns, in the dtype of the tiles.
    ``unit`` is how many pixels a row or a column stands for."""
    rows, columns = (_in_units(spans, unit) for spans in (grid.rows, grid.columns))
    whole = torch.zeros(1, tiles.shape[1], rows[-1][1], columns[-1][1], device=tiles.device)
    row_weights, column_weights = (
        [weight.to(tiles.device) for weight in weights_of(spans)] for spans in (rows, columns)
    )
    waiting = iter(tiles)
    for (top, bottom), row_weight in zip(rows, row_weights, strict=True):
        for (left, right), column_weight in zip(columns, column_weights, strict=True):
            weight = row_weight[:, None] * column_weight
            whole[0, :, top:bottom, left:right] += next(waiting).float() * weight
    return whole.to(tiles.dtype)


def cut(whole: torch.Tensor, grid: TileGrid, unit: int) -> torch.Tensor:
    """The inverse of :func:`blend`: the tiles of a whole, 1 x channels x rows x columns."""
    return torch.cat(
        [
            whole[:, :, top // unit : bottom // unit, left // unit : right // unit]
            for left, top, right, bottom in grid.boxes()
        ]
    )


def agreeing(tiles: torch.Tensor, grid: TileGrid, unit: int) -> torch.Tensor:
    """The tiles, each the weighted mean of all that lie over it."""
    return cut(blend(tiles, grid, unit), grid, unit)


def stitched(tiles: list[Image.Image], grid: TileGrid) -> Image.Image:
    """The picture, RGB, that these tiles make."""
    whole = np.zeros((grid.size[1], grid.size[0], 3), np.float32)
    rows, columns = ([weight.numpy() for weight in weights_of(spans)] for spans in (grid.rows, grid.columns))
    for index, (left, top, right, bottom) in enumerate(grid.boxes()):
        row, column = divmod(index, len(grid.columns))
        weight = rows[row][:, None, None] * columns[column][:, None]
        whole[top:bottom, left:right] += np.asarray(tiles[index], np.float32) * weight
    return Image.fromarray(whole.round().clip(0, 255).astype(np.uint8))


def _in_units(spans: tuple[Span, ...], unit: int) -> tuple[Span, ...]:
    return tuple((start // unit, stop // unit) for start, stop in spans)


class InBatches:
    """Stands in for a denoiser that is called in every step for ``count`` pictures: it runs for at most ``most`` of
    them at a time, and tells ``report`` what is done of all steps after each time."""

    def __init__(self, count: int, most: int, report: StepReport) -> None:
        self.denoiser: Any = None
        self._count, self._most, self._report = count, most, report
        self._parts, self._steps, self._done = math.ceil(count / most), 1, 0

    def begin(self, denoiser: Any, steps: int) -> InBatches:
        """Itself, for a denoiser and a number of steps."""
        self.denoiser, self._steps = denoiser, steps
        return self

    def after_step(self, done: int, total: int, latents: Callable[[], torch.Tensor] | None) -> None:
        """To be called after every step."""
        self._done = done * self._parts
        self._report(self._done, total * self._parts, latents)

    def __call__(self, *given: Any, **named: Any) -> tuple[Any, ...]:
        rows = len(given[0] if given else named["hidden_states"])
        at_once = self._most * (rows // self._count)  # a negative prompt may give every picture a second row
        results: list[Any] = []
        for start in range(0, rows, at_once):
            part = _part_of(rows, slice(start, start + at_once))
            named_part = {name: part(name, value) for name, value in named.items()}
            results.append(self.denoiser(*[part("", value) for value in given], **named_part)[0])
            self._report(self._done + len(results), self._steps * self._parts, None)
        if isinstance(results[0], torch.Tensor):
            return (torch.cat(results),)
        return ([one for result in results for one in result],)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


def _part_of(rows: int, chosen: slice) -> Callable[[str, Any], Any]:
    """A function that takes the name and the value of an argument and gives these rows of it. What has not one entry a
    row is for all."""

    def part(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: part(key, one) for key, one in value.items()}
        if name in SHARED and value.ndim == 2:
            return value
        by_row = value.ndim > 0 if isinstance(value, torch.Tensor) else isinstance(value, list | tuple)
        return value[chosen] if by_row and len(value) == rows else value

    return part
