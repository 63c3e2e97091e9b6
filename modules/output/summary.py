"""What a run did, in lines for a person, from the records of its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    results = unit_results([record.get("parameters", {}) for record in given], len(units))
    parts = [_in_words(number, result) for number, result in enumerate(results, start=1)]
    return [*lines, f"adetailer: {'; '.join(parts)}"] if parts else lines


def facts(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a log says of the pictures of one request: the size, the model, how many regions were repainted, and what
    could not be honoured. Empty without a record."""
    given = [record for record in records if "seed" in record]
    if not given:
        return {}
    parameters = [record.get("parameters", {}) for record in given]
    request = given[0]["request"]
    results = unit_results(parameters, len(request.get("adetailer") or ()))
    notices = request.get("notices")
    return {
        "model": given[0]["model"]["name"],
        "size": given[0].get("size"),
        "regions": sum(result["repainted"] for result in results) if results else None,
        **({"units": results} if results else {}),
        **({"notices": notices} if notices else {}),
    }


def unit_results(parameters: Sequence[Mapping[str, Any]], units: int) -> list[dict[str, Any]]:
    """For each ADetailer unit of a request, over all pictures: how many detections were ``found`` and ``repainted``,
    and why the others were ``skipped``. ``parameters`` are those of the pictures."""
    results = []
    for suffix in SUFFIXES[:units]:
        repainted = sum(len(one.get(f"_adetailer_regions{suffix}", ())) for one in parameters)
        skipped = [str(reason) for one in parameters for reason in one.get(f"_adetailer_skipped{suffix}", ())]
        results.append({"found": repainted + len(skipped), "repainted": repainted, "skipped": skipped})
    return results


def _in_words(number: int, result: Mapping[str, Any]) -> str:
    skipped = result["skipped"]
    reasons = "; ".join(shortened(reason, 200) for reason in skipped[:MAX_REASONS])
    more = f" and {len(skipped) - MAX_REASONS} more" if len(skipped) > MAX_REASONS else ""
    counts = f"found {result['found']}, repainted {result['repainted']}, skipped {len(skipped)}"
    return f"unit {number} {counts}" + (f" ({reasons}{more})" if skipped else "")
