"""What ``weight_precision`` "auto" takes on which card, and that it rounds further before it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.model_specs import FLUX_DEV, KNOWN, embedded_spec

from backend.core.errors import SettingsError
from backend.memory_management import (
    DeviceMemory,
    MemoryPlan,
    MemoryPlanError,
    MemoryRules,
    Placement,
    Workload,
    plan_memory,
)
from backend.planning.gpu_specs import card_named, emulated_memory
from backend.planning.model_specs import ModelSpec
from backend.planning.precision import four_bits
from backend.planning.rules import ROUNDING

GB = 10**9
PLAIN = Workload(1024, 1024, detail_crop=1024, scale=2)
AUTO = MemoryRules(weight_precision="auto")


def automatic(device: DeviceMemory, models: ModelSpec = FLUX_DEV) -> MemoryPlan:
    side = models.native
    return plan_memory(device, models, Workload(side, side, detail_crop=side, scale=2), AUTO)


@pytest.mark.parametrize("name", ["A100 40GB", "L40S", "A100-80", "H100", "RTX PRO 6000", "H200"])
def test_a_card_of_40_gb_and_more_holds_everything_as_it_is(name: str) -> None:
    placements = automatic(card_named(name).device()).placements
    assert placements["transformer"] == placements["text_encoder_2"] == Placement("resident", "bf16")


@pytest.mark.parametrize("name", ["RTX 4060 Ti 16GB", "RTX 4080", "RTX 4090", "L4", "RTX 5080"])
def test_from_16_to_24_gb_a_card_that_multiplies_in_fp8_does_so_where_the_format_can_be_loaded(name: str) -> None:
    card = card_named(name)
    loaded = replace(AUTO, formats=frozenset(ROUNDING))
    placements = plan_memory(card.device(held_bytes=card.held_bytes), FLUX_DEV, PLAIN, loaded).placements
    assert placements["transformer"].dtype == "fp8_compute"
    assert placements["text_encoder_2"].dtype == "fp8"


@pytest.mark.parametrize("name", ["RTX 3090", "A10", "RTX A4000", "A30"])
def test_from_16_to_24_gb_ampere_takes_no_fewer_than_8_bits(name: str) -> None:
    card = card_named(name)
    loaded = replace(AUTO, formats=frozenset(ROUNDING))
    placements = plan_memory(card.device(held_bytes=card.held_bytes), FLUX_DEV, PLAIN, loaded).placements
    assert {placements["transformer"].dtype, placements["text_encoder_2"].dtype} <= {"bf16", "fp8"}


@pytest.mark.parametrize("name", ["RTX 2080 Ti", "RTX 3060", "RTX 3080", "RTX 4060", "RTX 4070", "RTX 5070"])
@pytest.mark.parametrize("host_gb", [16, 64])
def test_up_to_12_gb_the_transformer_has_4_bits_only_where_8_are_much_slower_or_read_from_the_disk(
    name: str, host_gb: int
) -> None:
    card = card_named(name)
    device = card.device(host_bytes=host_gb * GB, held_bytes=card.held_bytes)
    eight = plan_memory(device, FLUX_DEV, PLAIN, MemoryRules(weight_precision="fp8"))
    four = plan_memory(device, FLUX_DEV, PLAIN, four_bits(MemoryRules()))
    plan = automatic(device)
    pays = four.predicted_seconds < 0.9 * eight.predicted_seconds or eight.reread_bytes > 0
    assert plan.placements == (four if pays else eight).placements
    assert plan.reasons[0].startswith(f"weight_precision 'auto' means '{'nf4' if pays else 'fp8'}' here: ")
    assert pays == ((name, host_gb) in {("RTX 3060", 16), ("RTX 4060", 16)})


@pytest.mark.parametrize("device", [emulated_memory(10**9, 16 * GB), DeviceMemory("cpu", 16 * GB)])
def test_without_a_card_nothing_is_rounded(device: DeviceMemory) -> None:
    models = embedded_spec()
    assert {placement.dtype for placement in automatic(device, models).placements.values()} == {"fp32"}


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_a_model_that_a_card_holds_is_not_rounded(name: str) -> None:
    models = KNOWN[name]
    plan = automatic(card_named("RTX 4070").device(), models)
    assert {p.dtype for p in plan.placements.values()} == {c.dtype for c in models.components.values()}


def test_it_rounds_further_before_it_refuses() -> None:
    """The host has no room for weights that are converted when they are read."""
    converted = {name: replace(component, on_disk="fp32") for name, component in FLUX_DEV.components.items()}
    models = replace(FLUX_DEV, components=converted)
    small_host = emulated_memory(16 * GB, 16 * GB)
    with pytest.raises(MemoryPlanError, match="memory are missing"):
        plan_memory(small_host, models, PLAIN, MemoryRules(weight_precision="bf16"))
    plan = automatic(small_host, models)
    assert plan.placements["transformer"].dtype == "fp8"
    assert plan.reasons[0] == "weight_precision 'auto' means 'fp8' here: less rounding does not fit."


def test_gguf_is_for_gguf_files() -> None:
    with pytest.raises(SettingsError, match="has quantized weights; choose a GGUF file as 'model', or use 'auto'"):
        plan_memory(card_named("H100").device(), FLUX_DEV, PLAIN, MemoryRules(weight_precision="gguf"))
    stored = {
        **FLUX_DEV.components,
        "transformer": replace(FLUX_DEV.components["transformer"], on_disk="Q4_K", packed=0.5625),
    }
    models = replace(FLUX_DEV, components=stored)
    plan = plan_memory(card_named("H100").device(), models, PLAIN, MemoryRules(weight_precision="gguf"))
    assert plan.placements["transformer"].dtype == "packed"
