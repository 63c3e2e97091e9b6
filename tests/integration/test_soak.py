"""What a service keeps of many requests: nothing; and a leak would be seen (``bench/robustness/soak.py``, in short)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.robustness.soak import Soak, mixed_requests, soak
from modules.app.service import Service


@pytest.fixture
def scratch(service: Service) -> Path:
    return service.outputs.parent


@pytest.mark.slow
def test_mixed_requests_leave_nothing_behind(service: Service, scratch: Path, tmp_path: Path) -> None:
    requests = mixed_requests(16, tmp_path, seed=1)
    seen = soak(service, requests, scratch, every=0)
    assert set(seen.outcomes) == {"done", "refused", "canceled", "failed"} and seen.outcomes.total() == 16
    assert seen.bytes_moved == 0
    assert seen.left_files == []
    assert seen.threads[-1] <= seen.threads[len(seen.threads) // 2]


@pytest.mark.slow
def test_a_picture_after_many_others_is_that_of_a_fresh_process(
    service: Service, scratch: Path, tmp_path: Path
) -> None:
    requests = [request for request in mixed_requests(12, tmp_path, seed=2) if request.outcome == "done"][:3]
    seen = soak(service, requests, scratch, every=3)
    assert seen.compared == 1 and seen.different == []


@pytest.mark.slow
def test_a_leak_is_noticed(service: Service, scratch: Path, tmp_path: Path) -> None:
    requests = [request for request in mixed_requests(60, tmp_path) if request.outcome == "refused"] * 4
    assert not any("host memory rose" in fault for fault in soak(service, requests, scratch, every=0).faults())
    assert any(
        "host memory rose" in fault for fault in soak(service, requests, scratch, leak=20_000_000, every=0).faults()
    )


@pytest.mark.parametrize(("counts", "rises"), [([20, 21, 20, 22] * 10, False), ([*range(20, 60)], True)])
def test_open_files_and_threads_that_grow_are_noticed(counts: list[int], rises: bool) -> None:
    for seen in (Soak(memory=[0] * 40, descriptors=counts), Soak(memory=[0] * 40, threads=counts)):
        assert Soak.grows(counts) is rises
        assert any("open files or threads rose" in fault for fault in seen.faults()) is rises
