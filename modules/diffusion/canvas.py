"""The picture sizes that a model family generates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ASPECT_RATIOS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "1:1": (1024, 1024),
        "16:9": (1344, 768),
        "21:9": (1536, 640),
        "3:2": (1216, 832),
        "2:3": (832, 1216),
        "4:5": (896, 1088),
        "5:4": (1088, 896),
        "3:4": (896, 1152),
        "4:3": (1152, 896),
        "9:16": (768, 1344),
        "9:21": (640, 1536),
    }
)
"""Width and height in pixels at one megapixel, as hosted Flux models have them; other native sizes scale them."""

MEGAPIXELS: Mapping[str, float] = MappingProxyType({"1": 1.0, "0.25": 0.25, "0.5": 0.5, "2": 2.0, "4": 4.0})
"""The area of a picture, as a share of the native area."""
AREAS = ("1", "0.25")
"""Those that every model draws."""
MATCH_INPUT = "match_input"
"""The megapixels with which a picture gets the area of the given one."""
MOST_MATCHED = 1440
"""Pixels of the longer side of a picture that is as large as the given one."""


MAX_ASPECT_RATIO = 8
"""Of the longer side to the shorter: of pictures that are read and of those that are generated."""
MAX_SQUEEZE = 0.01
"""How much the shape of a given picture may change, as a share of its aspect ratio."""
MAX_AREA_CHANGE = 1.5
"""The factor by which the area may change for that."""


@dataclass(frozen=True)
class Canvas:
    """The sizes that a model draws.

    Attributes:
        native: Its native side in pixels, 1024 for Flux.
        multiple: Of which both sides must be multiples.
        aspect_ratios: Width and height by aspect ratio, at a native side of 1024.
        after_image: Of which both sides are multiples, rounded down, where the size follows from a given picture; 0 for
            the size of the most similar shape.
        areas: The megapixels that it draws.
        preferred: Sizes at a native side of 1024, of which a picture gets the one nearest to the shape of a reference
            picture; without any it gets that shape.
    """

    native: int
    multiple: int
    aspect_ratios: Mapping[str, tuple[int, int]] = field(default_factory=lambda: ASPECT_RATIOS)
    after_image: int = 0
    areas: tuple[str, ...] = AREAS
    preferred: tuple[tuple[int, int], ...] = ()

    def fitted(self, width: float, height: float) -> tuple[int, int]:
        """The size on the grid that is nearest."""
        return max(1, round(width / self.multiple)) * self.multiple, max(
            1, round(height / self.multiple)
        ) * self.multiple

    def in_shape(self, width: float, height: float) -> tuple[int, int]:
        """A size on the grid of nearly this shape and area.

        It is the nearest, unless that squeezes the picture by more than ``MAX_SQUEEZE``. Then it is the one of the most
        similar area that does not; where the grid is too coarse to have any, the one that squeezes least.
        """

        def squeeze(size: tuple[int, int]) -> float:
            return math.exp(abs(math.log(size[0] / size[1] * height / width))) - 1

        def area_change(size: tuple[int, int]) -> float:
            return math.exp(abs(math.log(size[0] * size[1] / (width * height))))

        near = self.fitted(width, height)
        if squeeze(near) <= MAX_SQUEEZE:
            return near
        columns = range(1, math.ceil(width * MAX_AREA_CHANGE / self.multiple) + 1)
        sizes = [
            (column * self.multiple, row * self.multiple)
            for column in columns
            for row in {math.floor(column * height / width), math.ceil(column * height / width)}
            if row
        ]
        similar = [size for size in sizes if area_change(size) <= MAX_AREA_CHANGE]
        kept = [size for size in similar if squeeze(size) <= MAX_SQUEEZE]
        return min(kept, key=area_change) if kept else min(similar or [near], key=squeeze)

    def size(self, aspect_ratio: str, megapixels: str) -> tuple[int, int]:
        """Width and height for an aspect ratio, on the family's grid. "1" megapixel is the family's native area."""
        return self._scaled(self.aspect_ratios[aspect_ratio], megapixels)

    def size_like(self, width: int, height: int, megapixels: str) -> tuple[int, int]:
        """The size of a picture that gets the shape of a given one, and with ``MATCH_INPUT`` its area too."""
        scale = self._scale_to(width, height, megapixels)
        if not self.after_image:
            return self.in_shape(width * scale, height * scale)
        grid = math.lcm(self.after_image, self.multiple)
        return max(grid, int(width * scale) // grid * grid), max(grid, int(height * scale) // grid * grid)

    def size_near(self, width: int, height: int, megapixels: str) -> tuple[int, int]:
        """The nearest size for a part of a picture, whose shape can follow."""
        scale = self._scale_to(width, height, megapixels)
        return self.fitted(width * scale, height * scale)

    def _scale_to(self, width: int, height: int, megapixels: str) -> float:
        if megapixels == MATCH_INPUT:
            return min(1.0, MOST_MATCHED / max(width, height))
        return math.sqrt(self.native**2 * MEGAPIXELS[megapixels] / (width * height))

    def size_for_reference(self, width: int, height: int, megapixels: str) -> tuple[int, int]:
        """The size of a picture in the shape of a reference picture, which is not its beginning."""
        if not self.preferred or megapixels == MATCH_INPUT:
            return self.size_like(width, height, megapixels)
        return self._scaled(self.nearest_preferred(width, height), megapixels)

    def nearest_preferred(self, width: int, height: int) -> tuple[int, int]:
        """The preferred size of the most similar shape, at a native side of 1024."""
        return min(self.preferred, key=lambda size: (abs(width / height - size[0] / size[1]), size))

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """The size at which a reference picture of this size is read: the preferred one, rounded down to the grid (as
        in diffusers' ``FluxKontextPipeline``)."""
        scale = self.native / 1024
        wide, high = (
            max(self.multiple, int(side * scale) // self.multiple * self.multiple)
            for side in self.nearest_preferred(width, height)
        )
        return wide, high

    def _scaled(self, size: tuple[int, int], megapixels: str) -> tuple[int, int]:
        """A size at a native side of 1024, for this side and area."""
        scale = self.native / 1024 * MEGAPIXELS[megapixels] ** 0.5
        width, height = (max(self.multiple, round(side * scale / self.multiple) * self.multiple) for side in size)
        return width, height
