"""The node that generates pictures of a table, row by row; a row that fails is reported and does not stop the others.

The function that makes a picture is passed in, so nothing here knows about models. The same node runs in this process
and in the workers of ``backend/nodes/ray_data.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.core.errors import StorageError, UserError
from backend.memory_management import MemoryPlan, VRAMState
from backend.nodes.table import Row

logger = logging.getLogger(__name__)

Report = Callable[[str, Any], None]
FACTS = "facts"
"""The name under which ``make`` reports what the manifest should say about its pictures."""
MakePictures = Callable[[Mapping[str, Any], Report], Sequence[Path]]
"""Makes the pictures of some inputs and returns their files, which the next call may delete; reports metrics by
name."""


@dataclass(frozen=True)
class Outcome:
    """The result of a row: the bytes of its picture files, or an ``error`` in one line.

    ``stages`` holds seconds by stage, ``peak_bytes`` the highest peak memory of any stage, ``facts`` what else the
    manifest says about the row.
    """

    row: Row
    pictures: tuple[bytes, ...] = ()
    suffix: str = ""
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        """The pictures by file name, which is made of the row's id and the picture's number."""
        return {f"{self.row.stem}-{index}{self.suffix}": picture for index, picture in enumerate(self.pictures)}


def clearing_helps(plan: MemoryPlan) -> bool:
    """Whether freeing unused memory between rows is worth its time: only where models and pictures compete for memory.

    Where every model is resident, the next row reuses the same blocks, and clearing would only make it ask the driver
    for them again.
    """
    return plan.state in (VRAMState.LOW_VRAM, VRAMState.NO_VRAM)


class ImageGenerateNode:
    """Makes the pictures of rows with ``make``; runs ``clear``, if given, after every row."""

    def __init__(self, make: MakePictures, clear: Callable[[], None] | None = None) -> None:
        self._make, self._clear = make, clear

    def run(self, rows: Iterable[Row]) -> Iterator[Outcome]:
        """The outcome of every row, in order, each as soon as it is ready."""
        return map(self.generate, rows)

    def generate(self, row: Row) -> Outcome:
        """Makes the pictures of one row. A row that fails raises nothing: that is an outcome too. A full disk is none,
        because all other rows would fail too: it raises :class:`StorageError`."""
        if row.problem:
            return Outcome(row, error=row.problem)
        metrics: dict[str, Any] = {}
        begin = time.perf_counter()
        try:
            files = self._make(row.inputs, metrics.__setitem__)
            pictures = tuple(file.read_bytes() for file in files)
        except StorageError:
            raise  # the next row would fail in the same way
        except UserError as error:
            return Outcome(row, error=str(error))
        except Exception as error:  # the other rows must go on whatever this was; the log has the stack trace
            logger.exception("row %s failed", row.id)
            return Outcome(row, error=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        finally:
            if self._clear:
                self._clear()
        stages = {
            name.removesuffix(".seconds"): value
            for name, value in metrics.items()
            if name.endswith(".seconds") and name.count(".") == 1
        }
        peak = max((value for name, value in metrics.items() if name.endswith(".peak_bytes")), default=0)
        seconds, facts = time.perf_counter() - begin, metrics.get(FACTS, {})
        return Outcome(row, pictures, files[0].suffix, seconds, stages, int(peak), facts)
