"""The input ``ad_mask``: what the user painted is repainted like what a detector finds."""

from __future__ import annotations

import numpy as np
from PIL import Image

from modules.detection.detections import Detections, stacked_masks
from modules.request.image_modes import HALF

MAX_AREAS = 32
"""Of one mask; each is a mask of the whole picture in memory."""


def areas_of(mask: Image.Image, size: tuple[int, int]) -> Detections:
    """The connected white areas of a mask (L) in a picture of this size (width, height), each a detection of confidence
    1 with its own outline, from top to bottom. Of more than ``MAX_AREAS`` the largest."""
    import cv2

    white = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > HALF
    _, labels, areas, _ = cv2.connectedComponentsWithStats(white.astype(np.uint8), connectivity=8)
    numbers = np.arange(1, len(areas))  # 0 is the background
    largest = np.sort(numbers[np.argsort(-areas[1:, cv2.CC_STAT_AREA], kind="stable")[:MAX_AREAS]])
    corners = areas[largest, :2]
    boxes = np.concatenate([corners, corners + areas[largest, 2:4]], axis=1).astype(np.float64)
    masks = stacked_masks(((labels == number) * np.uint8(255) for number in largest), len(largest), size)
    return Detections(boxes, masks, np.ones(len(largest)))


def joined(first: Detections, second: Detections) -> Detections:
    """Both, numbered anew in this order."""
    return Detections(
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.masks, second.masks]),
        np.concatenate([first.confidences, second.confidences]),
    )
