"""``scripts/healthcheck`` believes the answer's body, not its status code, and never waits long."""

from __future__ import annotations

import subprocess
import time

import pytest
from support.fixed_answer import answering
from support.processes import Server

from backend.core.settings import ROOT


def healthcheck(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "healthcheck", "--url", url], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_real_server_is_healthy(server: Server) -> None:
    result = healthcheck(server.url)
    assert result.returncode == 0 and result.stdout.strip() in ("READY", "BUSY")


@pytest.mark.parametrize("status", ["STARTING", "SETUP_FAILED", "DEFUNCT", "UNHEALTHY"])
def test_a_server_that_cannot_work_is_not_though_it_answers_200(status: str) -> None:
    with answering(f'{{"status": "{status}"}}'.encode()) as url:
        result = healthcheck(url)
    assert result.returncode == 1 and result.stdout.strip() == status


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b"{}", b"\xff"])
def test_an_answer_that_is_none_is_not(body: bytes) -> None:
    with answering(body) as url:
        assert healthcheck(url).returncode == 1


def test_nobody_there_and_nobody_answering_are_noticed_at_once() -> None:
    begin = time.monotonic()
    assert healthcheck("http://127.0.0.1:9").returncode == 1
    with answering(b'{"status": "READY"}', delay=20) as url:
        assert healthcheck(url).returncode == 1
        assert time.monotonic() - begin < 10
