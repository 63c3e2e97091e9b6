"""How Hires fix cuts a large picture into tiles, and what the plan counts for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.model_specs import FLUX_DEV

from backend.planning.activations import Workload, canvas_bytes, prediction_steps
from backend.planning.gpu_specs import card_named
from backend.planning.planner import plan_memory
from backend.planning.redraw_tiles import OVERLAP, count_redraw_tiles, redraw_spans


@pytest.mark.parametrize("multiple", [8, 16, 32])
def test_spans_cover_every_length_and_overlap(multiple: int) -> None:
    for length in range(multiple, 5760, 5 * multiple):
        spans = redraw_spans(length, 1024, multiple)
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all((stop - start, start % multiple) == (min(1024, length), 0) for start, stop in spans)
        shared = [stop - start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False)]
        assert all(one >= OVERLAP * 1024 for one in shared), f"{length}: {spans}"
        assert len(spans) < 2 or (len(spans) - 2) * 768 + 1024 < length, "one fewer would do"


def test_a_picture_of_four_times_the_side_has_25_tiles() -> None:
    assert count_redraw_tiles(4096, 4096, 1024) == 25 and count_redraw_tiles(1024, 700, 1024) == 1


def test_the_second_pass_in_tiles_needs_one_tile_and_the_latents_of_the_whole() -> None:
    whole = Workload(1024, 1024, hires=(4096, 4096), scale=1)
    alone, one_pass, tiles = (
        [step for step in prediction_steps(work, FLUX_DEV, new_prompt=False) if step.stage != "upscale"]
        for work in (Workload(1024, 1024, scale=1), whole, replace(whole, hires_tiles=True))
    )
    canvas = canvas_bytes(4096, 4096, FLUX_DEV)
    for first, pass_, tile in zip(alone, one_pass[-2:], tiles[-2:], strict=True):
        assert tile.memory == first.memory + canvas < pass_.memory
    assert one_pass[-2].forwards * 25 == tiles[-2].forwards and tiles[-1].forwards == 25


def test_the_plan_says_what_fits_in_one_pass_and_how_many_tiles_at_a_time() -> None:
    plans = [plan_memory(card_named(name).device(), FLUX_DEV, Workload(1024, 1024)) for name in ("RTX 4090", "H100")]
    tokens = [FLUX_DEV.text_tokens + plan.one_pass_pixels / FLUX_DEV.token_pixels**2 for plan in plans]
    needed = [FLUX_DEV.costs["denoise"].memory(count) for count in tokens]
    assert 1024**2 <= plans[0].one_pass_pixels < plans[1].one_pass_pixels and needed[0] < 24e9 and needed[1] < 80e9
    assert 1 <= plans[0].max_tile_batch <= plans[1].max_tile_batch == 8
