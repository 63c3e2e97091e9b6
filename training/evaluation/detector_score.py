"""How good a detector is, on drawings whose boxes and masks are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from modules.detection.detections import Detections, Floats, Mask
from training.data.shapes import Box

IOU = 0.5


def overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of ``a`` (N x 4) with every box of ``b`` (M x 4): N x M."""
    corners = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = corners.clip(min=0).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return np.asarray(shared / (area_a[:, None] + area_b[None] - shared))


def mask_overlap(a: Mask, b: Mask) -> Floats:
    """The same of masks, N x H x W with M x H x W: N x M."""
    first, second = (
        (masks.reshape(len(masks), masks.shape[1] * masks.shape[2]) > 0).astype(np.float32) for masks in (a, b)
    )
    shared = (first @ second.T).astype(np.float64)
    return np.asarray(shared / np.maximum(first.sum(axis=1)[:, None] + second.sum(axis=1)[None] - shared, 1))


def score(found: Iterable[Detections], truth: Iterable[Sequence[Box]]) -> dict[str, float]:
    """Recall and precision at IoU 0.5, and how confident the detector is of what it finds.

    An object counts once: a second box on it is wrong.
    """
    objects = boxes = 0
    confidences: list[float] = []
    for detections, real in zip(found, truth):
        objects, boxes = objects + len(real), boxes + len(detections)
        hits, _ = _matched(overlap(detections.boxes, np.array(real, np.float64).reshape(-1, 4)))
        confidences += [float(value) for value in detections.confidences[hits]]
    return {
        "recall": round(len(confidences) / objects, 4),
        "precision": round(len(confidences) / max(boxes, 1), 4),
        "median_confidence": round(float(np.median(confidences or [0])), 3),
        "share_over_half": round(float(np.mean([value > 0.5 for value in confidences or [0]])), 3),
    }


def average_precision(overlaps: Sequence[Floats], confidences: Sequence[Floats]) -> float:
    """mAP50 of one class: the area under precision over recall, over all confidences.

    Args:
        overlaps: Of every picture what was found (most confident first) with what is there, N x M.
        confidences: Of every picture, N.
    """
    objects = sum(one.shape[1] for one in overlaps)
    right = np.concatenate([_matched(one)[0] for one in overlaps])
    order = np.argsort(-np.concatenate(confidences), kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best that this recall or a higher one comes with
    return round(float((envelope * right[order]).sum() / max(objects, 1)), 4)


def median_overlap(overlaps: Sequence[Floats]) -> float:
    """Of what was found: how well it fits, in the middle; 0 where nothing was."""
    fits = np.concatenate([_matched(one)[1] for one in overlaps])
    return round(float(np.median(fits)), 4) if len(fits) else 0.0


def _matched(overlaps: Floats) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.bool_]], Floats]:
    """Which rows (most confident first) find a column that no row before has found, and how well those fit."""
    free, right, fits = overlaps.copy(), np.zeros(len(overlaps), bool), []
    for index, row in enumerate(free):
        if row.max(initial=0) >= IOU:
            right[index] = True
            fits.append(row.max())
            free[:, row.argmax()] = 0
    return right, np.array(fits, np.float64)
