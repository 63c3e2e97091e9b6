"""``scripts/healthcheck`` believes the answer's body, not its status code, and never waits long."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from support.fixed_answer import answering
from support.processes import Server

from backend.core.heartbeat import FILE, Heartbeat
from backend.core.scratch import PREFIX, scratch_folder
from backend.core.settings import ROOT


def healthcheck(url: str, temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / "healthcheck", "--url", url],
        env={**os.environ, "TMPDIR": str(temporary)} if temporary else None,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def unanswered() -> Iterator[Future[tuple[int, float]]]:
    """Exit code and seconds where nobody answers: it waits beside the other tests of this file."""

    def wait(url: str) -> tuple[int, float]:
        begin = time.monotonic()
        return healthcheck(url).returncode, time.monotonic() - begin

    with answering(b'{"status": "READY"}', delay=20) as url, ThreadPoolExecutor(1) as pool:
        yield pool.submit(wait, url)


def test_the_real_server_is_healthy(server: Server) -> None:
    result = healthcheck(server.url)
    assert result.returncode == 0 and result.stdout.strip() in ("READY", "BUSY")


@pytest.mark.parametrize("status", ["STARTING", "SETUP_FAILED", "DEFUNCT", "UNHEALTHY"])
def test_a_server_that_cannot_work_is_not_though_it_answers_200(status: str) -> None:
    with answering(f'{{"status": "{status}"}}'.encode()) as url:
        result = healthcheck(url)
    assert result.returncode == 1 and result.stdout.strip() == status


@pytest.mark.parametrize(("seconds", "code"), [(0.0, 0), (299.0, 0), (301.0, 1)])
@pytest.mark.parametrize("status", ["READY", "BUSY"])
def test_a_gateway_without_progress_is_not(status: str, seconds: float, code: int) -> None:
    with answering(f'{{"status": "{status}", "seconds_without_progress": {seconds}}}'.encode()) as url:
        result = healthcheck(url)
    assert result.returncode == code and result.stdout.startswith(status)
    assert ("no progress for 301 s" in result.stdout) == bool(code)


def test_cogs_server_alone_is_not_where_its_worker_makes_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with answering(b'{"status": "READY"}') as url, scratch_folder() as folder:
        assert healthcheck(url, tmp_path).returncode == 0
        with Heartbeat(folder).working():
            assert healthcheck(url, tmp_path).returncode == 0
            os.utime(folder / FILE, (0, 0))
            assert healthcheck(url, tmp_path).returncode == 1
        assert healthcheck(url, tmp_path).returncode == 0


def test_cogs_server_alone_is_not_where_every_place_is_taken_and_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        answering(b'{"status": "BUSY"}') as busy,
        answering(b'{"status": "READY"}') as ready,
        scratch_folder() as folder,
    ):
        assert healthcheck(busy, tmp_path).returncode == 0
        os.utime(folder, (0, 0))
        assert healthcheck(busy, tmp_path).returncode == 1
        assert healthcheck(ready, tmp_path).returncode == 0
        with Heartbeat(folder).working():
            assert healthcheck(busy, tmp_path).returncode == 0


def test_what_a_killed_worker_left_does_not_count(tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / FILE).touch()
    os.utime(left / FILE, (0, 0))
    with answering(b'{"status": "READY"}') as url:
        assert healthcheck(url, tmp_path).returncode == 0


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b"{}", b"\xff"])
def test_an_answer_that_is_none_is_not(body: bytes) -> None:
    with answering(body) as url:
        assert healthcheck(url).returncode == 1


def test_nobody_there_and_nobody_answering_are_noticed_at_once(unanswered: Future[tuple[int, float]]) -> None:
    assert healthcheck("http://127.0.0.1:9").returncode == 1
    code, seconds = unanswered.result()
    assert code == 1 and seconds < 10
