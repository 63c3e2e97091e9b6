"""Timelines as files: a trace by the rules of Chrome's Trace Event Format, which Perfetto reads, and a chart."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backend.core.timeline import Span, Timeline
from backend.core.timeline_export import ROW, trace, write_timeline


def require_valid(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The complete events of a document that keeps the rules of the format: the JSON object form, the fields of every
    phase with their types, and events of one thread that nest. (Perfetto drops events that overlap.)"""
    assert isinstance(document["traceEvents"], list) and document.get("displayTimeUnit", "ms") in ("ms", "ns")
    complete: list[dict[str, Any]] = []
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event.get("args", {}), dict)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "M":
            assert event["name"] == "process_name" and isinstance(event["args"]["name"], str)
            continue
        assert all(isinstance(event[key], int | float) and event[key] >= 0 for key in ("ts", "dur"))
        complete.append(event)
    for thread in {(event["pid"], event["tid"]) for event in complete}:
        open_ends: list[float] = []
        events = [event for event in complete if (event["pid"], event["tid"]) == thread]
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            while open_ends and open_ends[-1] <= event["ts"]:
                open_ends.pop()
            assert not open_ends or event["ts"] + event["dur"] <= open_ends[-1], f"{event['name']} overlaps"
            open_ends.append(event["ts"] + event["dur"])
    return complete


@pytest.fixture
def timeline() -> Timeline:
    memory = iter(range(100, 10_000, 100))
    found = Timeline(peak_memory=lambda: next(memory))
    with found.span("generate"):
        with found.span("encode"):
            time.sleep(0.01)
        with found.span("denoise"):
            time.sleep(0.02)
    with found.span("upscale"):
        time.sleep(0.005)
    return found


def test_a_trace_holds_every_span_with_its_times_its_path_and_its_peak(timeline: Timeline, tmp_path: Path) -> None:
    write_timeline(timeline, tmp_path / "timeline.json")
    events = require_valid(json.loads((tmp_path / "timeline.json").read_text()))
    assert [event["name"] for event in events] == ["generate", "encode", "denoise", "upscale"]
    for event, span in zip(events, timeline.spans, strict=True):
        assert event["ts"] / 1e6 == pytest.approx(span.start, abs=1e-6)
        assert event["dur"] / 1e6 == pytest.approx(span.seconds, abs=2e-6)
        assert event["args"] == {"path": span.path, "peak_bytes": span.peak_bytes} and span.peak_bytes > 0
    outer, _, inner = events[:3]
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


@given(st.lists(st.integers(0, 10_000), min_size=6, max_size=6, unique=True).map(sorted), st.floats(0, 1e4))
def test_spans_nest_after_rounding_however_short_they_are(nanoseconds: list[int], offset: float) -> None:
    timeline, edges = Timeline(), [offset + moment * 1e-9 for moment in nanoseconds]
    pairs = [("a", 0, edges[0], edges[5]), ("b", 1, edges[1], edges[4]), ("c", 2, edges[2], edges[3])]
    timeline.spans = [Span(name, depth, begin, end - begin, path=name) for name, depth, begin, end in pairs]
    assert len(require_valid(trace(timeline))) == 3


def test_a_chart_is_a_picture_with_a_row_a_span(timeline: Timeline, tmp_path: Path) -> None:
    write_timeline(timeline, tmp_path / "timeline.PNG")
    with Image.open(tmp_path / "timeline.PNG") as image:
        assert image.width > 500 and image.height == ROW * (len(timeline.spans) + 2)
        assert len(image.convert("RGB").getcolors(1 << 16) or []) > 2


@pytest.mark.parametrize("name", ["timeline.json", "timeline.png"])
def test_no_temporary_file_stays(timeline: Timeline, tmp_path: Path, name: str) -> None:
    write_timeline(timeline, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
