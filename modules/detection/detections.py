"""What a detector finds in one image: boxes, masks and confidences.

A mask is a uint8 array H x W that holds 0 or 255. A box is x1, y1, x2, y2 in pixels, x to the right, y down. An image
size is (width, height), as in PIL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

Mask = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image: N boxes with their masks, confidences and numbers.

    Whatever chooses or reorders goes through :meth:`take`, so these cannot come apart.

    Attributes:
        boxes: N x 4, x1, y1, x2, y2 in pixels.
        masks: N x H x W, 0 or 255, each of the image's size.
        confidences: N, from 0 to 1.
        numbers: N, what each is called; by default 1, 2, 3 in their order.
    """

    boxes: Floats
    masks: Mask
    confidences: Floats
    numbers: npt.NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if not len(self.numbers):
            object.__setattr__(self, "numbers", np.arange(1, count + 1))
        if (
            self.boxes.shape != (count, 4)
            or self.masks.ndim != 3
            or len(self.masks) != count
            or {self.confidences.shape, self.numbers.shape} != {(count,)}
        ):
            shapes = (
                f"boxes {self.boxes.shape}, masks {self.masks.shape}, confidences {self.confidences.shape} and "
                f"numbers {self.numbers.shape}"
            )
            raise ValueError(f"{shapes} do not belong together")

    def __len__(self) -> int:
        return len(self.boxes)

    def areas(self) -> Floats:
        """Of the boxes, N, in square pixels."""
        x1, y1, x2, y2 = self.boxes.T
        return np.asarray((x2 - x1) * (y2 - y1))

    def take(self, indices: Sequence[int] | npt.NDArray[np.intp]) -> Detections:
        """The detections with these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.intp)
        if np.array_equal(chosen, np.arange(len(self))):  # masks of a large picture are not copied without need
            return self
        return Detections(self.boxes[chosen], self.masks[chosen], self.confidences[chosen], self.numbers[chosen])


def stacked_masks(masks: Iterable[Mask], count: int, image_size: tuple[int, int]) -> Mask:
    """The masks as one array, ``count`` x H x W.

    Memory that is only zeroed is not there until something is written, and only the boxes are. So the masks of a
    picture of 40 megapixels take no 40 MB each.
    """
    width, height = image_size
    stack = np.zeros((count, height, width), np.uint8)
    for place, mask in zip(stack, masks, strict=True):
        if box := bounding_box(mask):
            left, top, right, bottom = box
            place[top:bottom, left:right] = mask[top:bottom, left:right]
    return stack


def rectangle_masks(boxes: Floats, image_size: tuple[int, int]) -> Mask:
    """A filled rectangle for every box, N x H x W. Both corners are included, their fractions dropped."""
    width, height = image_size
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.clip(min=0).astype(int)):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 255
    return masks


def bounding_box(mask: Mask) -> tuple[int, int, int, int] | None:
    """The box around all pixels that are not 0, right and bottom edge exclusive; None for a blank mask."""
    return Image.fromarray(mask).getbbox()
