"""Timelines as files: a chart (PNG), or a trace that Perfetto and ``chrome://tracing`` open (JSON)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.core.files import atomic_files, write_atomic
from backend.core.timeline import Timeline

if TYPE_CHECKING:
    from PIL.Image import Image

ROW, LEFT, WIDTH, RIGHT = 22, 230, 900, 90
"""Pixels of the chart: height of a row, width of the names, of the bars, and of the last label."""
SUFFIXES = (".png", ".json")
"""Of the files that :func:`write_timeline` writes."""
COLOURS = ("#3b6fb6", "#6fa8dc", "#9fc5e8", "#cfe2f3")
"""Of the bars, by depth."""


def write_timeline(timeline: Timeline, path: Path) -> None:
    """Writes a trace where the name ends in ``.json``, else the chart. Raises OSError when the disk is full, say."""
    if path.suffix.lower() == ".json":
        write_atomic(path, json.dumps(trace(timeline), indent=1))
        return
    with atomic_files([path]) as [part]:
        chart(timeline).save(part, "PNG")


def trace(timeline: Timeline) -> dict[str, Any]:
    """The finished spans in the Trace Event Format of Chrome.

    One complete event ("ph": "X") a span, with ``ts`` and ``dur`` in microseconds since the timeline's beginning.
    ``args`` holds the span's whole path, such as ``generate.denoise``, and its peak memory in bytes.
    """
    process = {"pid": os.getpid(), "tid": os.getpid()}
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", **process, "args": {"name": "cog-flux-adetailer"}}
    ]
    for span in timeline.spans:
        # both ends are rounded, and not the duration, so that an inner span never ends after its outer one
        begin, end = round(span.start * 1e6), round((span.start + span.seconds) * 1e6)
        args = {"path": span.path, "peak_bytes": span.peak_bytes}
        events.append({"name": span.name, "ph": "X", "ts": begin, "dur": end - begin, **process, "args": args})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def chart(timeline: Timeline) -> Image:
    """The spans as bars, time in seconds to the right, one row a span."""
    from PIL import Image, ImageDraw, ImageFont

    spans = timeline.spans
    whole = max([span.start + span.seconds for span in spans], default=1.0) or 1.0
    image = Image.new("RGB", (LEFT + WIDTH + RIGHT, ROW * (len(spans) + 2)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for index, span in enumerate(spans):
        y = ROW * index + 8
        x1 = LEFT + WIDTH * span.start / whole
        x2 = max(LEFT + WIDTH * (span.start + span.seconds) / whole, x1 + 1)
        draw.text((8 + 12 * span.depth, y), span.name, fill="black", font=font)
        draw.rectangle((x1, y, x2, y + ROW - 6), fill=COLOURS[min(span.depth, 3)])
        draw.text((x2 + 5, y), f"{span.seconds:.2f} s", fill="black", font=font)
    base = ROW * len(spans) + 12
    draw.line((LEFT, base, LEFT + WIDTH, base), fill="black")
    for tick in range(6):
        x = LEFT + WIDTH * tick / 5
        draw.line((x, base, x, base + 4), fill="black")
        draw.text((x - 10, base + 6), f"{whole * tick / 5:.1f}", fill="black", font=font)
    return image
