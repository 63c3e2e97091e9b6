"""How the regions of a batch of pictures become inpainting jobs: seeds, prompts, and which run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modules.adetailer.inpaint_jobs import InpaintJob, inpaint_jobs
from modules.adetailer.regions import ChosenRegions
from modules.detection.detections import Detections
from modules.inpainting.region import Region
from modules.request.adetailer_unit import AdetailerUnit
from modules.request.image_request import MAX_SEED, ImageRequest

REQUEST = ImageRequest(prompt="a crowd", width=256, height=256, seed=1, num_inference_steps=28, negative_prompt="hats")
UNIT = AdetailerUnit()
NOTHING = Detections(np.zeros((0, 4)), np.zeros((0, 40, 400), np.uint8), np.zeros(0))


def regions(*lefts: int, size: tuple[int, int] = (64, 64), area_ratio: float = 0.0) -> ChosenRegions:
    """Regions in a row at these places: 20 pixels to be changed, with 10 more around them in the crop."""
    made = []
    for number, left in enumerate(lefts, start=1):
        mask = np.zeros((40, 400), np.uint8)
        mask[10:30, left + 10 : left + 30] = 255
        made.append(Region((left, 0, left + 40, 40), mask, size, number, area_ratio))
    return ChosenRegions(tuple(made), (), NOTHING)


def jobs(
    *chosen: ChosenRegions, unit: AdetailerUnit = UNIT, seeds: Sequence[int] = (), max_batch: int = 8
) -> list[list[InpaintJob]]:
    return inpaint_jobs(chosen, seeds or range(11, 11 + len(chosen)), unit, REQUEST, max_batch)


def places(batches: list[list[InpaintJob]]) -> list[list[tuple[int, int]]]:
    """The picture and the region's number of every job."""
    return [[(job.picture, job.region.number) for job in batch] for batch in batches]


def test_region_j_of_a_picture_has_the_pictures_seed_plus_j() -> None:
    [batch] = jobs(regions(0, 100, 200), seeds=(11,))
    assert [job.seed for job in batch] == [11, 12, 13]
    [batch] = jobs(regions(0, 100, 200), seeds=(11,), unit=AdetailerUnit(same_seed_for_each_tab=True))
    assert [job.seed for job in batch] == [11, 11, 11]


def test_a_seed_after_the_largest_is_0() -> None:
    [batch] = jobs(regions(0, 100), seeds=(MAX_SEED,))
    assert [job.seed for job in batch] == [MAX_SEED, 0]


def test_every_region_has_its_part_of_the_prompts() -> None:
    [batch] = jobs(regions(0, 100), unit=AdetailerUnit(prompt="a king [SEP] [PROMPT], laughing"))
    assert [(job.prompt, job.negative) for job in batch] == [("a king", "hats"), ("a crowd, laughing", "hats")]


def test_regions_that_do_not_overlap_run_together_over_all_pictures() -> None:
    assert places(jobs(regions(0, 100), regions(0, 200))) == [[(0, 1), (0, 2), (1, 1), (1, 2)]]


def test_of_two_regions_that_overlap_the_second_runs_later() -> None:
    assert places(jobs(regions(0, 15), regions(0))) == [[(0, 1), (1, 1)], [(0, 2)]]


def test_a_batch_is_no_larger_than_allowed() -> None:
    assert places(jobs(regions(0, 100, 200, 300), max_batch=3)) == [[(0, 1), (0, 2), (0, 3)], [(0, 4)]]


def test_a_batch_has_one_size_and_one_negative_prompt() -> None:
    assert places(jobs(regions(0), regions(0, size=(64, 96)))) == [[(0, 1)], [(1, 1)]]
    assert places(jobs(regions(0, 100), unit=AdetailerUnit(negative_prompt="a [SEP] b"))) == [[(0, 1)], [(0, 2)]]


def test_a_batch_runs_one_number_of_steps() -> None:
    """With a dynamic strength: 28 steps at 0.4 are 11, at 0.4 x 0.99 also 11, and at 0.4 x 0.5 they are 5."""
    unit = AdetailerUnit(denoising_strength=0.4, dynamic_denoise_power=1)
    three = [regions(0, area_ratio=area) for area in (0.0, 0.01, 0.5)]
    assert places(jobs(*three, unit=unit)) == [[(0, 1), (1, 1)], [(2, 1)]]
    own = replace(unit, use_steps=True, steps=2)  # so few that every strength runs a single one
    assert places(jobs(*three, unit=own)) == [[(0, 1), (1, 1), (2, 1)]]


def test_without_regions_there_are_no_jobs() -> None:
    assert jobs(regions(), regions()) == []
