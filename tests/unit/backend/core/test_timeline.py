"""Spans nest, survive errors, add up, and become a table and metrics."""

from __future__ import annotations

import time

import pytest

from backend.core.timeline import Timeline


def test_spans_nest_and_outer_ones_hold_the_inner_ones() -> None:
    timeline = Timeline()
    with timeline.span("generate"):
        with timeline.span("encode"):
            time.sleep(0.01)
        with timeline.span("denoise"):
            time.sleep(0.02)
    outer, encode, denoise = timeline.spans
    assert (outer.depth, encode.depth, denoise.path) == (0, 1, "generate.denoise")
    assert outer.seconds >= encode.seconds + denoise.seconds >= 0.03
    assert denoise.start >= encode.start + encode.seconds


def test_a_span_that_raises_is_closed_and_counted() -> None:
    timeline = Timeline()
    with pytest.raises(KeyError), timeline.span("generate"):
        raise KeyError
    with timeline.span("upscale"):
        pass
    assert [span.depth for span in timeline.spans] == [0, 0]


def test_metrics_add_up_repeated_spans_and_keep_the_highest_peak() -> None:
    peaks = iter([5, 5, 30, 1, 20, 1, 1])
    timeline = Timeline(peak_memory=lambda: next(peaks))
    for _ in range(2):
        with timeline.span("detect"):
            pass
    metrics = timeline.metrics()
    assert set(metrics) == {"detect.seconds", "detect.peak_bytes"}
    assert metrics["detect.peak_bytes"] == max(span.peak_bytes for span in timeline.spans)
    assert metrics["detect.seconds"] == pytest.approx(sum(span.seconds for span in timeline.spans), abs=1e-3)


def test_an_inner_peak_counts_for_the_outer_span() -> None:
    memory = [0]
    timeline = Timeline(peak_memory=lambda: memory[0])
    with timeline.span("outer"):
        with timeline.span("inner"):
            memory[0] = 7
        memory[0] = 1
    assert timeline.metrics()["outer.peak_bytes"] == 7


def test_the_table_indents_and_totals() -> None:
    timeline = Timeline()
    with timeline.span("generate"), timeline.span("encode"):
        pass
    lines = timeline.table().splitlines()
    assert lines[1].startswith("generate ") and lines[2].startswith("  encode ") and lines[-1].startswith("total")
