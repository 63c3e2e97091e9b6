"""Progress for people: one bar a stage on a terminal, a few lines of the same form in a log, where hosted platforms
read them."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

LINES_PER_STAGE = 10
BAR_WIDTH = 20


class ProgressBars:
    """The ``Progress`` of a pipeline. A stage that starts over (one face after the other) keeps its one bar.

    >>> with ProgressBars() as progress:
    ...     progress("generate", 1, 28)
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: tqdm[None] | None = None
        self._stage = ""
        self._printed = -1

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._close()
            self._stage, self._printed = stage, -1
        if self._stream.isatty():
            if self._bar is None:
                self._bar = tqdm(total=total, desc=stage, file=self._stream, leave=True)
            self._bar.total, self._bar.n = total, done
            self._bar.refresh()
        else:
            self._line(done, max(total, 1))

    def _line(self, done: int, total: int) -> None:
        """Prints when a further tenth is done. The form is tqdm's, which platforms turn into their own bar."""
        tenth = done * LINES_PER_STAGE // total
        if tenth != self._printed:
            self._printed = tenth
            bar = "█" * (done * BAR_WIDTH // total)
            print(
                f"{done / total:4.0%}|{bar:<{BAR_WIDTH}}| {done}/{total} {self._stage}", file=self._stream, flush=True
            )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
