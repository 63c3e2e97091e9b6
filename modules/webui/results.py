"""What the page shows of a finished run, from its files alone: so it is the same after a reload, and for a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from backend.core.units import format_bytes
from modules.output.image_writer import read_parameters
from modules.output.summary import SUFFIXES
from modules.webui.history import Entry

Box = tuple[tuple[int, int, int, int], str]
STAGE, SECONDS, SHARE, PEAK = "stage", "seconds", "share", "peak memory"


@dataclass(frozen=True)
class Details:
    """What is known of one picture of a run.

    Attributes:
        before: The picture before and after the detail pass; None where the first is not known.
        boxes: The picture, and what was detected in it, each box with its confidence.
        found: What each unit found, repainted and skipped, with the reasons, in Markdown.
        parameters: The text in the file, in the WebUI's format.
    """

    file: Path
    before: tuple[str, str] | None
    boxes: tuple[str, list[Box]] | None
    found: str
    parameters: str


def details(entry: Entry, number: int) -> Details:
    """Of the picture ``number``, from 0. A file without a record, as of a foreign server, says less."""
    file = entry.pictures[number]
    text, record = read_parameters(file)
    found = (_Unit.of(record.get("parameters", {}), suffix) for suffix in SUFFIXES)
    units = [unit for unit in found if unit]
    before = (str(entry.before[number]), str(file)) if number < len(entry.before) else None
    boxes = None
    if any(unit.found for unit in units):
        scale = float(record["request"].get("scale") or 1)
        with Image.open(file) as image:
            size = image.size
        boxes = (before[0] if before else str(file), [box for unit in units for box in unit.boxes(scale, size)])
    return Details(file, before, boxes, _found(units), text)


@dataclass(frozen=True)
class _Unit:
    label: str
    found: Sequence[Sequence[float]]
    repainted: int
    skipped: Sequence[str] = field(default=())

    @classmethod
    def of(cls, parameters: Mapping[str, Any], suffix: str) -> _Unit | None:
        """The unit whose labels end in ``suffix``, where the record has it."""
        regions = parameters.get(f"_adetailer_regions{suffix}")
        if regions is None:
            return None
        found = parameters.get(f"_adetailer_found{suffix}", ())
        return cls(
            f"Unit {SUFFIXES.index(suffix) + 1}", found, len(regions), parameters.get(f"_adetailer_skipped{suffix}", ())
        )

    def boxes(self, scale: float, size: tuple[int, int]) -> list[Box]:
        """What was found, in pixels of a picture of ``size`` that was upscaled by ``scale`` afterwards."""
        boxes = []
        for number, (*corners, confidence) in enumerate(self.found, start=1):
            x1, y1, x2, y2 = (
                min(max(0, round(side * scale)), most) for side, most in zip(corners, (*size, *size), strict=True)
            )
            fate = "skipped" if any(reason.startswith(f"detection {number}:") for reason in self.skipped) else "redrawn"
            boxes.append(((x1, y1, x2, y2), f"{self.label}, {number}: {confidence:.0%}, {fate}"))
        return boxes


def _found(units: Sequence[_Unit]) -> str:
    lines = []
    for unit in units:
        count = unit.repainted + len(unit.skipped)
        lines.append(f"**{unit.label}** found {count}, repainted {unit.repainted}, skipped {len(unit.skipped)}")
        lines += [f"- {reason}" for reason in unit.skipped]
    return "\n".join(lines) or "No detail pass."


def stage_rows(metrics: Mapping[str, Any]) -> list[list[str | float]]:
    """Name, seconds, share of the whole and peak memory of every stage and its parts, in order."""
    flat = dict(_flat(metrics))
    names = [name.removesuffix(".seconds") for name in flat if name.endswith(".seconds")]
    stages = list(dict.fromkeys(name.partition(".")[0] for name in names))  # a server sends parts before their stage
    names.sort(key=lambda name: (stages.index(name.partition(".")[0]), "." in name))
    whole = sum(flat[f"{name}.seconds"] for name in names if "." not in name) or 1.0
    return [
        [
            "\u2003" * name.count(".") + name.rpartition(".")[2],
            round(flat[f"{name}.seconds"], 2),
            f"{flat[f'{name}.seconds'] / whole:.0%}",
            format_bytes(int(flat[f"{name}.peak_bytes"])) if f"{name}.peak_bytes" in flat else "",
        ]
        for name in names
    ]


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Cog's server sends ``{"generate": {"seconds": 1}}`` for what the service calls ``generate.seconds``."""
    pairs: list[tuple[str, Any]] = []
    for name, value in metrics.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return pairs


def headline(entry: Entry) -> str:
    """One line on how the run ended, in Markdown, and its notices."""
    record = entry.record
    count = len(entry.pictures)
    if count:
        lines = [f"**{count} picture{'s' if count > 1 else ''}** in {record['seconds']} s by {record['model']}"]
    else:
        lines = [f"**{record['state']}** {record.get('error', '')}"]
    return "\n".join([*lines, *(f"- {notice}" for notice in record.get("metrics", {}).get("notices", ()))])
