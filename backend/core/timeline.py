"""Where the time goes: nested spans, printed as a table or sent as metrics.

``backend/core/timeline_export.py`` writes them to files.

>>> timeline = Timeline()
>>> with timeline.span("generate"):
...     with timeline.span("encode"):
...         pass
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MemoryProbe = Callable[[], int]


@dataclass
class Span:
    """One named piece of time. ``start`` and ``seconds`` are relative to the timeline's beginning; memory is in
    bytes."""

    name: str
    depth: int
    start: float
    seconds: float = 0.0
    peak_bytes: int = 0
    path: str = field(default="")


class Timeline:
    """Spans of one set-up or one prediction, in the order in which they began.

    ``peak_memory`` gives the peak memory in bytes since ``reset_peak`` was last called; both are from the device. Spans
    nest, so an inner span's peak also counts for the outer ones. ``begin`` is a moment of ``time.perf_counter()``; now,
    when it is left out.
    """

    def __init__(
        self,
        peak_memory: MemoryProbe | None = None,
        reset_peak: Callable[[], None] | None = None,
        begin: float | None = None,
    ) -> None:
        self._begin = time.perf_counter() if begin is None else begin
        self._peak_memory = peak_memory
        self._reset_peak = reset_peak
        self._open: list[Span] = []
        self.spans: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Times the block, also when it raises."""
        path = ".".join([*(outer.name for outer in self._open), name])
        span = Span(name, len(self._open), time.perf_counter() - self._begin, path=path)
        self._note_peak()
        if self._reset_peak:
            self._reset_peak()
        self.spans.append(span)
        self._open.append(span)
        try:
            yield span
        finally:
            span.seconds = time.perf_counter() - self._begin - span.start
            self._note_peak()
            self._open.remove(span)

    def passed(self, name: str, until: float | None = None) -> None:
        """Adds what went on between the last span (or the timeline's beginning) and ``until``, a moment as ``begin``
        is; else until now."""
        start = max((span.start + span.seconds for span in self.spans), default=0.0)
        end = self.seconds if until is None else until - self._begin
        self.spans.append(Span(name, 0, start, max(0.0, end - start), path=name))

    def _note_peak(self) -> None:
        if self._peak_memory and self._open:
            peak = self._peak_memory()
            for span in self._open:
                span.peak_bytes = max(span.peak_bytes, peak)

    @property
    def seconds(self) -> float:
        """From the timeline's creation until now."""
        return time.perf_counter() - self._begin

    def metrics(self) -> dict[str, float]:
        """``{"generate.seconds": .., "generate.peak_bytes": .., "generate.encode.seconds": ..}``; repeated spans add
        up."""
        values: dict[str, float] = {}
        for span in self.spans:
            seconds = f"{span.path}.seconds"
            values[seconds] = round(values.get(seconds, 0.0) + span.seconds, 4)
            if span.peak_bytes:
                peak = f"{span.path}.peak_bytes"
                values[peak] = max(values.get(peak, 0), span.peak_bytes)
        return values

    def table(self) -> str:
        """One line a span: name indented by depth, seconds, share of the whole, peak memory."""
        whole = sum(span.seconds for span in self.spans if span.depth == 0) or 1.0
        width = max([24, *(len(span.name) + 2 * span.depth for span in self.spans)])
        lines = [f"{'stage':<{width}} {'seconds':>8} {'share':>6} {'peak':>9}"]
        for span in self.spans:
            name = "  " * span.depth + span.name
            peak = f"{span.peak_bytes / 2**20:.0f} MiB" if span.peak_bytes else ""
            lines.append(f"{name:<{width}} {span.seconds:>8.2f} {span.seconds / whole:>6.0%} {peak:>9}".rstrip())
        lines.append(f"{'total':<{width}} {whole:>8.2f}")
        return "\n".join(lines)


def process_began(pid: int | None = None) -> float:
    """When a process (this one, when none is named) began, as a moment of ``time.perf_counter()`` of this process
    (Linux)."""
    fields = (
        Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()
    )  # a program's name may hold blanks
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - (time.clock_gettime(time.CLOCK_BOOTTIME) - began)
