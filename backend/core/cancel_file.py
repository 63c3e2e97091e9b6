"""How another process cancels a prediction: by a file in the folder of the prediction.

The gateway does not use Cog's own cancel. coglet 0.23.1 answers 200 and loses it when it comes before the prediction
has its thread. In the milliseconds after that it raises ``CancelationException`` in that thread: the prediction counts
as failed while its coroutine goes on (``crates/coglet-python/src/worker_bridge.rs``, ``cancel``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

FILE = ".canceled"
LOOK_SECONDS = 0.05
"""Between two looks for the file."""


@asynccontextmanager
async def canceled_by_file(folder: Path | None) -> AsyncIterator[None]:
    """Cancels the task that runs this block as soon as ``FILE`` lies in ``folder``; with None nothing cancels it."""
    task = asyncio.current_task()
    if folder is None or task is None:
        yield
        return
    watch = asyncio.create_task(_cancel_when_there(folder / FILE, task))
    try:
        yield
    finally:
        watch.cancel()


async def _cancel_when_there(file: Path, task: asyncio.Task[object]) -> None:
    while not file.exists():
        await asyncio.sleep(LOOK_SECONDS)
    task.cancel()
