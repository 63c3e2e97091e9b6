"""What a run did, in lines for a person, from the records of its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backend.core.texts import shortened

SUFFIXES = ("", " 2nd", " 3rd", " 4th")
MAX_REASONS = 3
"""Of detections that were not repainted, named in a line."""


def summary(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The seeds, and what each ADetailer unit found, repainted and skipped in all pictures, with the reasons."""
    given = [record for record in records if "seed" in record]
    if not given:
        return []
    seeds = [str(record["seed"]) for record in given]
    lines = [f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"]
    units = given[0].get("request", {}).get("adetailer") or ()
    parts = [_of_unit(given, number) for number in range(len(units))]
    return [*lines, f"adetailer: {'; '.join(parts)}"] if parts else lines


def facts(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a log says of the pictures of one request: the size, the model, how many regions were repainted, and what
    could not be honoured. Empty without a record."""
    given = [record for record in records if "seed" in record]
    if not given:
        return {}
    parameters = [record.get("parameters", {}) for record in given]
    regions = sum(len(one.get(f"_adetailer_regions{suffix}", ())) for one in parameters for suffix in SUFFIXES)
    request = given[0]["request"]
    notices = request.get("notices")
    return {
        "model": given[0]["model"]["name"],
        "size": given[0].get("size"),
        "regions": regions if request.get("adetailer") else None,
        **({"notices": notices} if notices else {}),
    }


def _of_unit(records: Iterable[Mapping[str, Any]], number: int) -> str:
    repainted, skipped = 0, list[str]()
    for record in records:
        parameters = record.get("parameters", {})
        repainted += len(parameters.get(f"_adetailer_regions{SUFFIXES[number]}", ()))
        skipped += parameters.get(f"_adetailer_skipped{SUFFIXES[number]}", ())
    reasons = "; ".join(shortened(reason, 200) for reason in skipped[:MAX_REASONS])
    more = f" and {len(skipped) - MAX_REASONS} more" if len(skipped) > MAX_REASONS else ""
    return f"unit {number + 1} found {repainted + len(skipped)}, repainted {repainted}, skipped {len(skipped)}" + (
        f" ({reasons}{more})" if skipped else ""
    )
