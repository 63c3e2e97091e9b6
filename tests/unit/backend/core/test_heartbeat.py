"""Whether work goes on, as another process sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backend.core.heartbeat import FILE, Heartbeat, idle_seconds, silent_seconds


def test_there_is_no_silence_where_nothing_is_computed(tmp_path: Path) -> None:
    assert silent_seconds([tmp_path, tmp_path / "gone"]) is None
    with Heartbeat(tmp_path).working():
        assert silent_seconds([tmp_path]) is not None
    assert silent_seconds([tmp_path]) is None


def test_a_file_beside_the_folders_is_none(tmp_path: Path) -> None:
    (tmp_path / "log").touch()  # as Cog's server writes it with RUST_LOG=trace
    assert silent_seconds(tmp_path.iterdir()) is None
    worker = tmp_path / "worker"
    worker.mkdir()
    with Heartbeat(worker).working():
        assert silent_seconds(tmp_path.iterdir()) is not None


def test_silence_lasts_until_the_next_progress(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path)
    with heartbeat.working():
        os.utime(tmp_path / FILE, (0, 0))
        assert (silent_seconds([tmp_path]) or 0) > 1000
        heartbeat.beat()
        assert (silent_seconds([tmp_path]) or 0) < 60


def test_idleness_counts_from_the_last_begin_or_end_of_work(tmp_path: Path) -> None:
    assert idle_seconds([tmp_path / "gone"]) is None
    os.utime(tmp_path, (0, 0))
    assert (idle_seconds([tmp_path]) or 0) > 1000
    with Heartbeat(tmp_path).working():
        pass
    assert (idle_seconds([tmp_path]) or 0) < 60


def test_work_that_fails_has_ended_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Heartbeat(tmp_path).working():
        raise KeyError
    assert silent_seconds([tmp_path]) is None
