"""A process that ends with the one that started it."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_SECONDS = 0.5


def end_with_parent() -> None:
    """From now on this process ends, without any clean-up, soon after its parent has.

    A worker of Cog's server waits for ever when that server was killed during a prediction, and keeps the GPU.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="end_with_parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
