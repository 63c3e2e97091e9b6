"""The running server under requests that nobody would send on purpose: 500 here, any number by ``python -m bench.fuzz``."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import Server

from backend.settings import ROOT
from bench.fuzz import Fuzzer, Request

REQUESTS = 500


def test_no_crash_no_hang_no_leak_and_the_same_picture_afterwards(server: Server) -> None:
    server.wait_until_ready()
    report = Fuzzer(server.url).run(REQUESTS)
    assert report.faults == []
    assert sum(report.answers.values()) == REQUESTS
    assert report.answers[422] > REQUESTS / 5 and report.states["succeeded"] > REQUESTS / 50 and report.states["failed"] > 0, "the requests are too much alike"
    assert server.wait_until_ready() < 10


@contextmanager
def bad_server(code: int, body: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("code", "body", "fault"),
    [
        (500, "{}", "500: {}"),
        (200, f'{{"status": "failed", "error": "cannot open {ROOT}/x"}}', "the answer holds"),
        (422, 'Traceback (most recent call last): File "x.py"', "the answer holds"),
    ],
)
def test_a_fault_is_noticed(code: int, body: str, fault: str) -> None:
    """Else no faults would mean nothing."""
    with bad_server(code, body) as url:
        fuzzer = Fuzzer(url)
        fuzzer.send(Request("POST", "/predictions", b"{}"))
    assert len(fuzzer.report.faults) == 1 and fuzzer.report.faults[0].startswith(fault)


def test_a_connection_that_is_refused_is_a_fault() -> None:
    fuzzer = Fuzzer("http://127.0.0.1:9")
    fuzzer.send(Request("GET", "/", b""))
    assert "no answer" in fuzzer.report.faults[0]
