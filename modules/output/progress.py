"""Progress by tqdm: a bar on a terminal, and in a log a line for every further tenth."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

LINES = 10
"""In a log, for a whole bar."""
LOG_FORMAT = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {desc}"
"""Replicate's client finds progress in lines that begin with the percentage, so the description comes last."""


class Bar:
    """One bar. ``unit`` is that of what is counted; bytes ("B") are shown as kB, MB, GB."""

    def __init__(self, description: str, unit: str = "it", stream: TextIO | None = None) -> None:
        self.description = description
        self._unit, self._stream = unit, stream or sys.stderr
        self._bar: tqdm[None] | None = None
        self._begin, self._done, self._lines = time.monotonic(), 0, -1

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` are done. A bar may start over, and its total may change."""
        if self._stream.isatty():
            self._move(done, max(total, 1))
        else:
            self._print(done, max(total, 1))

    def close(self) -> None:
        """Ends the bar; what it showed last stays."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _move(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc=self.description,
                total=total,
                initial=done,
                unit=self._unit,
                unit_scale=self._unit == "B",
                file=self._stream,
            )
        self._bar.total, self._bar.n = total, done
        self._bar.set_description(self.description)

    def _print(self, done: int, total: int) -> None:
        if done < self._done:
            self._lines = -1
        self._done, lines = done, done * LINES // total
        if lines > self._lines:
            self._lines = lines
            line = tqdm.format_meter(
                done,
                total,
                time.monotonic() - self._begin,
                prefix=self.description,
                unit=self._unit,
                unit_scale=self._unit == "B",
                bar_format=LOG_FORMAT,
            )
            print(line, file=self._stream, flush=True)


class ProgressBars:
    """The ``Progress`` of a pipeline: a bar a stage. A stage that starts over (one face after the other) keeps its bar.

    >>> with ProgressBars() as progress:
    ...     progress("generate", 1, 28)
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: Bar | None = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.description != stage:
            self._close()
            self._bar = Bar(stage, stream=self._stream)
        self._bar.show(done, total)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
