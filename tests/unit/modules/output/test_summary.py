"""What a run did, for a person and for a log."""

from __future__ import annotations

from typing import Any

from modules.output.summary import facts, summary, unit_results

PARAMETERS: list[dict[str, Any]] = [
    {"_adetailer_regions": [[0, 0, 9, 9]], "_adetailer_skipped": ["detection 2: covers 0.9 of the picture"]},
    {"_adetailer_regions": [[0, 0, 9, 9]], "_adetailer_regions 2nd": [[1, 1, 2, 2]], "_adetailer_skipped 2nd": []},
]
RECORDS: list[dict[str, Any]] = [
    {"seed": seed, "model": {"name": "flux"}, "request": {"adetailer": [{}, {}]}, "parameters": parameters}
    for seed, parameters in zip((7, 8), PARAMETERS, strict=True)
]


def test_a_unit_is_counted_over_all_pictures() -> None:
    assert unit_results(PARAMETERS, 2) == [
        {"found": 3, "repainted": 2, "skipped": ["detection 2: covers 0.9 of the picture"]},
        {"found": 1, "repainted": 1, "skipped": []},
    ]
    assert unit_results(PARAMETERS, 0) == []


def test_a_person_reads_two_lines() -> None:
    assert summary(RECORDS) == [
        "seeds 7, 8",
        "adetailer: unit 1 found 3, repainted 2, skipped 1 (detection 2: covers 0.9 of the picture); "
        "unit 2 found 1, repainted 1, skipped 0",
    ]
    assert summary([{}]) == []


def test_a_log_has_the_same_numbers() -> None:
    assert facts(RECORDS)["units"] == unit_results(PARAMETERS, 2) and facts(RECORDS)["regions"] == 3
