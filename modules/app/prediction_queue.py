"""Predictions in their turn: Cog's server sends up to 16 at once, one computes, and the others wait in order.

Everything that touches the models, the set-up included, runs in one thread, so no model has to be safe for several.
A prediction brings its context into that thread: by it Cog's server knows whose metrics and logs it gets.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

from backend.core.cancel_file import canceled_by_file
from backend.core.cancellation import Cancellation
from backend.core.files import full_disk_in_one_line
from backend.core.heartbeat import Heartbeat
from modules.app.service import Report, Service
from modules.compat import server_folder

READ_SECONDS = 60.0
"""How long a finished picture waits to be read by Cog's server, which does so at once, before it is deleted anyway."""
LOOK_SECONDS = 0.02
"""Between two looks at whether it was read."""


class PredictionQueue:
    """Computes predictions one after the other, in the order in which :meth:`predict` was called.

    ``start`` makes the service; it runs in the thread that computes.
    """

    def __init__(self, start: Callable[[], Service]) -> None:
        self._thread = ThreadPoolExecutor(1, "predictions")
        self.service = self._thread.submit(start).result()
        self._heartbeat = Heartbeat(self.service.outputs.parent)
        self._deletions: set[asyncio.Task[None]] = set()

    async def predict(self, inputs: Mapping[str, Any], report: Report) -> list[Path]:
        """The files of the pictures that the inputs ask for, which are deleted once they have been read.

        The files among the inputs are deleted at the end. Raises :class:`backend.core.errors.InputError` for inputs
        that cannot be honoured. When the task is canceled, by Cog's server or by the gateway's file, a waiting
        prediction ends at once and a running one at its next check; the next one begins only then.
        """
        cancellation, arrived = Cancellation(), time.monotonic()

        def report_if_wanted(name: str, value: float) -> None:
            if not cancellation.canceled:  # Cog's server takes none of a canceled prediction
                report(name, value)

        def check() -> None:
            self._heartbeat.beat()
            cancellation.check()

        def compute() -> list[Path]:
            report_if_wanted("queue_seconds", round(time.monotonic() - arrived, 4))
            with self._heartbeat.working():
                return self.service.predict_into(directory, received, report_if_wanted, check=check)

        _delete_folders_of_server()
        with self.service.uploads.owned(inputs) as received:
            with full_disk_in_one_line():
                directory = Path(tempfile.mkdtemp(dir=self.service.outputs))
            job = self._thread.submit(copy_context().run, compute)
            try:
                async with canceled_by_file(server_folder()):
                    files = await asyncio.wrap_future(job)
            except asyncio.CancelledError:
                cancellation.cancel()
                if not job.cancel():  # it has begun
                    await asyncio.gather(asyncio.wrap_future(job), return_exceptions=True)
                shutil.rmtree(directory, ignore_errors=True)
                raise
        self._delete_when_read(directory, files)
        return files

    def _delete_when_read(self, directory: Path, files: list[Path]) -> None:
        for file in files:
            os.utime(file, (0, 0))  # the time of the last access changes when Cog's server reads the file
        task = asyncio.create_task(_delete_read(directory, files))
        self._deletions.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._deletions.discard)


def _delete_folders_of_server() -> None:
    """Cog's server makes three folders for every prediction, and deletes none. They are empty by now, and nothing that
    this package returns is written there."""
    if folder := server_folder():
        for empty in (folder / "inputs", folder / "outputs", folder):
            with suppress(OSError):
                empty.rmdir()


async def _delete_read(directory: Path, files: list[Path]) -> None:
    deadline = time.monotonic() + READ_SECONDS
    while time.monotonic() < deadline and any(file.stat().st_atime == 0 for file in files):
        await asyncio.sleep(LOOK_SECONDS)
    shutil.rmtree(directory, ignore_errors=True)
