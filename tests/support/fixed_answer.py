"""A server that says one thing to everybody."""

from __future__ import annotations

import http.server
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from support.background import serve_in_background


@contextmanager
def answering(body: bytes, status: int = HTTPStatus.OK, delay: float = 0.0) -> Iterator[str]:
    """Its address; GET and POST get the same, after ``delay`` seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        serve_in_background(running)
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
