"""Memory of the process that runs the tests, which keeps what is freed (``tests/conftest.py``)."""

from __future__ import annotations

import psutil

from modules.gateway.memory import give_back


def held_bytes() -> int:
    """What is in use now. What is free goes back to the system first: else a leak would fill it unseen."""
    give_back()
    return int(psutil.Process().memory_info().rss)
