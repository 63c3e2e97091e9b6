"""A part of a picture to be inpainted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from modules.detection.detections import Mask, bounding_box
from modules.inpainting.crops import Box


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a picture to be inpainted.

    Attributes:
        box: The crop that is cut out.
        mask: H x W of the whole picture, blurred; where it is 0, nothing changes.
        size: Width and height at which the crop is inpainted.
        number: The regions of a picture are numbered from 1, in their order.
        area_ratio: The share of the picture that the detection's box covers.
    """

    box: Box
    mask: Mask
    size: tuple[int, int]
    number: int = 1
    area_ratio: float = 0.0

    @cached_property
    def mask_box(self) -> Box:
        """The box around the pixels that inpainting can change."""
        box = bounding_box(self.mask)
        assert box is not None  # a region's mask is not blank
        return box

    def overlaps(self, other: Region) -> bool:
        """Whether the crop of one contains pixels that the other changes, so that their order matters."""
        return _intersect(self.mask_box, other.box) or _intersect(other.mask_box, self.box)

    def crop(self, image: Image.Image) -> Image.Image:
        """The crop at the size at which it is inpainted."""
        return image.crop(self.box).resize(self.size, Image.Resampling.LANCZOS)

    def crop_mask(self) -> Image.Image:
        """The mask of the crop, at the same size."""
        return Image.fromarray(self.mask).crop(self.box).resize(self.size, Image.Resampling.LANCZOS)


def _intersect(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])
