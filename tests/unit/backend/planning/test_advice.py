"""Advice is followed here: with what it names there is a plan, and with less there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support.model_specs import FLUX_DEV, KNOWN, embedded_spec

from backend.core.units import parse_bytes
from backend.memory_management import DeviceMemory, MemoryPlanError, MemoryRules, Workload, plan_memory
from backend.planning.advice import DEVICE, EMULATED, HOST, REQUEST, SET_UP_EMULATED, Case, Change, amount
from backend.planning.gpu_specs import emulated_memory, usual_cards
from backend.planning.rules import LEVELS

GB = 10**9


def refusal(case: Case, changeable: tuple[str, ...] = REQUEST) -> MemoryPlanError | None:
    try:
        plan_memory(case.device, case.models, case.workload, case.rules, changeable)
    except MemoryPlanError as error:
        return error
    return None


def followed(case: Case, change: Change) -> Case:
    """The case with a change done by its words, as a reader would."""
    value = change.value
    sides: tuple[int, int] | None = None
    if "x" in value:
        width, height = value.split("x")
        sides = int(width), int(height)
    workload, device = case.workload, case.device
    no_own_memory = device.type == "cpu"
    done: Workload | DeviceMemory | MemoryRules = {
        "num_outputs": lambda: replace(workload, outputs=int(value)),
        "width and height": lambda: replace(workload, width=sides[0], height=sides[1]) if sides else workload,
        "hr_scale": lambda: replace(workload, hires=sides),
        "adetailer": lambda: replace(workload, detail_crop=0),
        "scale": lambda: replace(workload, scale=float(value)),
        DEVICE: lambda: replace(device, total_bytes=parse_bytes(value)),
        EMULATED: lambda: replace(device, total_bytes=parse_bytes(value)),
        HOST: lambda: replace(device, **{"total_bytes" if no_own_memory else "host_bytes": parse_bytes(value)}),
        "weight_precision": lambda: replace(case.rules, weight_precision=value),
    }[change.field]()
    part = {Workload: "workload", DeviceMemory: "device", MemoryRules: "rules"}[type(done)]
    return replace(case, **{part: done})


sides = st.integers(4, 64).map(lambda n: 64 * n)
cases = st.builds(
    Case,
    device=st.builds(
        DeviceMemory,
        type=st.sampled_from(("cuda", "emulated", "cpu")),
        total_bytes=st.integers(GB, 16 * GB),
        host_bytes=st.integers(2 * GB, 64 * GB),
        capability=st.sampled_from(((8, 6), (8, 9))),
    ),
    models=st.sampled_from(sorted(KNOWN)).map(KNOWN.__getitem__),
    workload=st.builds(
        Workload,
        width=sides,
        height=sides,
        outputs=st.integers(1, 4),
        hires=st.none() | st.tuples(sides, sides),
        detail_crop=st.sampled_from((0, 1024)),
        scale=st.sampled_from((1.0, 2.0, 8.0)),
    ),
    rules=st.sampled_from(("auto", *LEVELS)).map(lambda precision: MemoryRules(weight_precision=precision)),
)


@settings(max_examples=20)
@given(cases)
def test_all_advice_works_when_it_is_followed(case: Case) -> None:
    error = refusal(case) or reject()
    assert error.changes
    for change in error.changes:
        assert str(change) in str(error)
        case = followed(case, change)
    assert refusal(case) is None, error


CARDS = {card.gib: card for card in reversed(usual_cards())}
"""One of each size, 8 to 141 GB."""


@pytest.mark.parametrize("name", ["flux-dev", "flux-kontext-dev", "flux2-klein", "z-image-turbo", "sdxl", "sd15"])
@pytest.mark.parametrize("host_gb", [8, 16, 32, 64])
def test_every_card_has_a_plan_or_advice_that_works_on_every_host(name: str, host_gb: int) -> None:
    """Only a machine with 8 GB is too small for some."""
    models = KNOWN[name]
    workload = Workload(models.native, models.native, steps=models.steps, cached_prompts=32)
    for card in CARDS.values():
        device = card.device(host_bytes=(host_gb - 2) * GB, held_bytes=card.held_bytes)
        case = Case(device, models, workload, MemoryRules(weight_precision="auto"))
        if error := refusal(case):
            assert host_gb == 8 and error.changes and "\n" not in str(error)
            for change in error.changes:
                case = followed(case, change)
            assert refusal(case) is None, (card.name, str(error))


@pytest.mark.parametrize(
    ("workload", "field"),
    [
        (Workload(1024, 1024, outputs=4, hires=(2048, 2048)), "num_outputs"),
        (Workload(4096, 4096), "width and height"),
        (Workload(1024, 1024, hires=(4096, 4096)), "hr_scale"),
    ],
)
def test_it_is_as_mild_as_it_may_be(workload: Workload, field: str) -> None:
    case = Case(DeviceMemory("cuda", 5 * GB), FLUX_DEV, workload, MemoryRules())
    error = refusal(case)
    assert error and [change.field for change in error.changes] == [field]
    advised = followed(case, error.changes[0]).workload
    if field == "num_outputs":
        milder = replace(workload, outputs=advised.outputs + 1)
    elif field == "hr_scale":
        milder = replace(
            workload, hires=(advised.hires[0] + 64, advised.hires[1] + 64) if advised.hires else (1088, 1088)
        )
    else:
        milder = replace(workload, width=advised.width + 64, height=advised.height + 64)
    assert refusal(replace(case, workload=milder))


def test_at_set_up_no_size_is_advised_because_none_is_asked_for() -> None:
    """The embedded models on a card of 5 MB: a larger budget helps, and its figure is right to a few percent."""
    case = Case(emulated_memory(5_000_000, 16 * GB), embedded_spec(), Workload(256, 256), MemoryRules())
    error = refusal(case, SET_UP_EMULATED)
    assert error and error.field == EMULATED
    assert str(error).endswith(f"; set emulate_vram to at least {error.changes[0].value}")
    enough = parse_bytes(error.changes[0].value)
    assert refusal(followed(case, error.changes[0]), SET_UP_EMULATED) is None
    assert refusal(replace(case, device=emulated_memory(int(0.95 * enough), 16 * GB)), SET_UP_EMULATED)


def test_a_machine_that_is_too_small_is_told_how_large_it_must_be() -> None:
    converted = {name: replace(one, on_disk="fp32", rounds=False) for name, one in FLUX_DEV.components.items()}
    models = replace(FLUX_DEV, components=converted)
    case = Case(DeviceMemory("cuda", 8 * GB, host_bytes=16 * GB), models, Workload(1024, 1024), MemoryRules())
    error = refusal(case)
    assert error and error.field == "model" and error.changes[-1].field == HOST
    assert "use a machine with at least" in str(error) and str(error).endswith("or choose a smaller model")


@pytest.mark.parametrize(
    ("count", "text"), [(5_000_000_001, "5.1GB"), (999_999_999, "1000.0MB"), (24_010_000, "24.1MB")]
)
def test_amounts_are_rounded_up(count: int, text: str) -> None:
    assert amount(count) == text and parse_bytes(text) >= count
