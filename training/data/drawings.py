"""Draws many subjects at once, on as many processes as there are cores to spare."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from training.data.subjects import Subject, draw_subject

SPARE_CORES = 2
"""What the training itself needs."""


def spare_processes() -> int:
    """How many processes may draw or write captions beside the training; 0 on a machine of two cores."""
    return max(0, (os.cpu_count() or 1) - SPARE_CORES)


def as_bytes(subject: Subject) -> np.ndarray:
    """The drawing, H x W x 3 bytes."""
    return np.asarray(draw_subject(subject))


def draw_many(subjects: Sequence[Subject]) -> Iterator[np.ndarray]:
    """The drawings, H x W x 3 bytes each, in the order of ``subjects``."""
    processes = spare_processes()
    if not processes:
        yield from map(as_bytes, subjects)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(as_bytes, subjects, chunksize=16)
