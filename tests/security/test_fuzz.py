"""The running server under requests that nobody would send on purpose: 500 here, any number by ``python -m
bench.robustness.fuzz``."""

from __future__ import annotations

import pytest
from support.fixed_answer import answering
from support.processes import Server

from backend.core.settings import ROOT
from bench.robustness.fuzz import Fuzzer, Request

REQUESTS = 500


def test_no_crash_no_hang_no_leak_and_the_same_picture_afterwards(server: Server) -> None:
    server.wait_until_ready()
    report = Fuzzer(server.url).run(REQUESTS)
    assert report.faults == []
    assert sum(report.answers.values()) == REQUESTS
    assert report.answers[422] > REQUESTS / 5 and report.answers[400] > 0, "the requests are too much alike"
    assert report.states["succeeded"] > REQUESTS / 50, "too few requests are right"
    assert report.states["failed"] == 0, "the gateway lets a request through that the worker refuses"
    assert server.wait_until_ready() < 10


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
    with answering(body.encode(), code) as url:
        fuzzer = Fuzzer(url)
        fuzzer.send(Request("POST", "/predictions", b"{}"))
    assert len(fuzzer.report.faults) == 1 and fuzzer.report.faults[0].startswith(fault)


def test_a_connection_that_is_refused_is_a_fault() -> None:
    fuzzer = Fuzzer("http://127.0.0.1:9")
    fuzzer.send(Request("GET", "/", b""))
    assert "no answer" in fuzzer.report.faults[0]
