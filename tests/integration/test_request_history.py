"""The same request gives the same pixels, whatever the process did before: also where memory ran out in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import EmulatedPipeline, emulated_pipeline
from support.pictures import PROMPT

from backend.planning.costs import Placement
from modules.request.image_request import ImageRequest

BUDGET = 91_000_000
"""Holds the 73.0 MB of all models and the decoding of 192 x 192, but not that of 256 x 256 beside them, nor that of
448 x 448 beside the autoencoder alone."""
SMALL, MEDIUM, LARGE = 192, 256, 448


def resident_pipeline(folder: Path) -> EmulatedPipeline:
    names = ("text_encoder", "text_encoder_2", "transformer", "vae", "upscaler", "detectors", "prompt_upsampler")
    return emulated_pipeline(dict.fromkeys(names, Placement("resident", "fp32")), BUDGET, folder)


def square(side: int) -> ImageRequest:
    return ImageRequest(prompt=PROMPT, width=side, height=side, seed=3, num_inference_steps=1)


def needs_tiles(pipeline: EmulatedPipeline, side: int) -> bool:
    """Whether pictures of that size were decoded in tiles."""
    return any(step.size == (side, side, 1) for step in pipeline.fallback.learned)


@dataclass(frozen=True)
class History:
    """A process and its pictures, in the order in which they were asked for."""

    pipeline: EmulatedPipeline
    pictures: tuple[np.ndarray, ...]
    retries: tuple[int, ...]
    """How often memory had been full after each."""

    @classmethod
    def of(cls, folder: Path, *sides: int) -> History:
        pipeline = resident_pipeline(folder)
        pictures, retries = [], []
        for side in sides:
            pictures.append(pipeline.run(square(side)))
            retries.append(pipeline.fallback.retries.total())
        return cls(pipeline, tuple(pictures), tuple(retries))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> History:
    return History.of(tmp_path_factory.mktemp("long"), SMALL, LARGE, SMALL, LARGE, MEDIUM)


def test_a_small_request_is_the_same_after_a_large_one_that_needed_tiles(long: History) -> None:
    assert long.retries[0] == 0 and needs_tiles(long.pipeline, LARGE)
    assert np.array_equal(long.pictures[2], long.pictures[0])


def test_a_request_that_needs_tiles_is_the_same_the_second_time_and_fails_no_more(long: History) -> None:
    assert np.array_equal(long.pictures[3], long.pictures[1])
    assert long.retries[1] == long.retries[3]


def test_a_request_that_needs_room_is_the_same_before_and_after_another_made_room(
    long: History, tmp_path: Path
) -> None:
    alone = History.of(tmp_path, MEDIUM)
    assert alone.retries[0] > 0 and not needs_tiles(alone.pipeline, MEDIUM)
    assert long.retries[4] == long.retries[3]
    assert np.array_equal(long.pictures[4], alone.pictures[0])
