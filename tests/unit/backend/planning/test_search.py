"""Which of several plans that fit is taken: the fastest, then the one that rounds least, then the one that concedes
least, then the one that needs least memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.model_specs import FLUX_DEV, KNOWN

from backend.memory_management import DeviceMemory, MemoryRules, Placement, Workload, plan_memory
from backend.planning.model_specs import PACKED, ModelSpec
from backend.planning.search import PlanSearch

GB = 10**9
INSTANT = DeviceMemory("emulated", 80 * GB, host_bytes=200 * GB, copy_bandwidth=1e18, flops=1e20)
"""Every plan takes 0.0 s here, so that only the other criteria decide."""
UPSCALER_NEEDS_MOST = Workload(512, 512, scale=4, upscale_tile=512)
DECODER_NEEDS_MOST = Workload(1024, 1024)
NF4 = MemoryRules(weight_precision="nf4")


@pytest.mark.parametrize("workload", [UPSCALER_NEEDS_MOST, DECODER_NEEDS_MOST], ids=["upscaler", "decoder"])
def test_of_equally_fast_plans_the_one_without_concessions_is_taken_although_others_need_less_memory(
    workload: Workload,
) -> None:
    plan = plan_memory(INSTANT, FLUX_DEV, workload, NF4)
    assert plan.placements == {
        name: Placement("resident", component.dtype) for name, component in FLUX_DEV.components.items()
    }
    assert plan.upscale_tile == workload.upscale_tile


def test_the_upscaler_tile_is_halved_no_more_often_than_memory_demands() -> None:
    everything_stays = sum(component.size() for component in FLUX_DEV.components.values())
    slow_copies = replace(INSTANT, total_bytes=everything_stays + GB, copy_bandwidth=25e9)
    plan = plan_memory(slow_copies, FLUX_DEV, UPSCALER_NEEDS_MOST)  # the upscaler needs 2.2 GB, or 0.7 with half tiles
    assert plan.upscale_tile == 260
    assert any("tiles of 260 pixels" in reason for reason in plan.reasons)


def test_one_concession_is_made_where_one_is_enough() -> None:
    """Without room for everything either one model is offloaded or the tile is halved, not both."""
    everything_stays = sum(component.size() for component in FLUX_DEV.components.values())
    plan = plan_memory(replace(INSTANT, total_bytes=everything_stays + GB), FLUX_DEV, UPSCALER_NEEDS_MOST)
    offloaded = [placement.kind for placement in plan.placements.values() if placement.kind != "resident"]
    assert (offloaded, plan.upscale_tile) in ((["model offload"], 512), ([], 260))


def test_concessions_come_before_rounding() -> None:
    """On 30 GB Flux fits rounded, or exact with a model that is offloaded."""
    plan = plan_memory(replace(INSTANT, total_bytes=30 * GB), FLUX_DEV, DECODER_NEEDS_MOST, NF4)
    assert {name: placement.dtype for name, placement in plan.placements.items()} == {
        name: component.dtype for name, component in FLUX_DEV.components.items()
    }


def test_time_comes_before_everything() -> None:
    """With copies that take seconds the transformer is rounded, so that it can stay."""
    slow_copies = replace(INSTANT, total_bytes=30 * GB, copy_bandwidth=5e9)
    plan = plan_memory(slow_copies, FLUX_DEV, DECODER_NEEDS_MOST, NF4)
    assert plan.placements["transformer"] == Placement("resident", "fp8")


def with_packed(rate: float) -> ModelSpec:
    transformer = replace(FLUX_DEV.components["transformer"], packed=rate, on_disk="Q4_K")
    return replace(FLUX_DEV, components={**FLUX_DEV.components, "transformer": transformer})


def test_what_a_file_has_quantized_is_dequantized_where_that_fits_and_stays_as_it_is_elsewhere() -> None:
    workload, models = Workload(1024, 1024), with_packed(0.6)
    large = plan_memory(DeviceMemory("emulated", 60 * GB), models, workload).placements["transformer"]
    small = plan_memory(DeviceMemory("emulated", 16 * GB), models, workload)
    assert large == Placement("resident", "bf16")
    assert small.placements["transformer"].dtype == PACKED
    assert any("stays in the Q4_K of its file" in reason for reason in small.reasons)
    assert small.predicted_peak_bytes <= 16 * GB


@pytest.mark.parametrize(("rate", "taken"), [(0.5625, PACKED), (0.6, PACKED), (1.0, "nf4")])
def test_weights_are_rounded_a_second_time_only_where_that_saves_memory(rate: float, taken: str) -> None:
    device = DeviceMemory("emulated", 12 * GB, host_bytes=200 * GB)
    plan = plan_memory(device, with_packed(rate), Workload(1024, 1024), NF4)
    assert plan.placements["transformer"].dtype == taken


def test_a_model_at_work_needs_room_for_the_layer_that_it_dequantizes() -> None:
    """Else the next model is uploaded ahead into memory that the text encoder is about to take."""
    klein = KNOWN["flux2-klein"]
    search = PlanSearch(INSTANT, klein, DECODER_NEEDS_MOST, NF4)
    exact, rounded = (
        search.step_bytes(tuple(search.option(name, Placement("resident", dtype)) for name in klein.components))
        for dtype in ("bf16", "fp8")
    )
    blocks = klein.components["text_encoder"].blocks
    assert rounded["text_encoder"] == exact["text_encoder"] + klein.components["text_encoder"].bytes_of(max(blocks))
