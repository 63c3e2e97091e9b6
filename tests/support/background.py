"""Servers of a test, which answer beside it."""

from __future__ import annotations

import threading
from socketserver import BaseServer

LOOKS = 0.01
"""Seconds between two."""


def serve_in_background(server: BaseServer) -> threading.Thread:
    """The thread in which ``server`` answers until it is shut down. By default that would take half a second: the time
    after which its loop looks whether it is to end."""
    thread = threading.Thread(target=server.serve_forever, args=(LOOKS,), daemon=True)
    thread.start()
    return thread
