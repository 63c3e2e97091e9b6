"""The same table through Ray Data on two workers of this machine, one of which is killed: the same pictures, none
missing and none twice.

Needs Ray: ``.venv/bin/pip install -r requirements-ray.txt``, then ``.venv/bin/python -m pytest
tests/unit/backend/nodes/test_ray_data.py``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.tables import BROKEN, entries, pixels, run_command, table_of_sixteen

from backend.nodes.result_log import MANIFEST

pytest.importorskip("ray.data", reason="Ray is not installed: .venv/bin/pip install -r requirements-ray.txt")

WORKER = b"ray::MapWorker"
SECONDS = 600


def lines(folder: Path) -> int:
    manifest = folder / MANIFEST
    return manifest.read_text().count("\n") if manifest.exists() else 0


def workers() -> set[int]:
    """Ray gives its processes the names of what they do."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(WORKER):
                found.add(int(process.name))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return found


@pytest.fixture(autouse=True)
def one_core_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_CPU_THREADS", "1")  # a picture's last bits depend on it


def test_a_table_through_ray_is_the_same_though_a_worker_is_killed(tmp_path: Path) -> None:
    table, alone, spread = table_of_sixteen(tmp_path), tmp_path / "alone", tmp_path / "spread"
    process = run_command(table, "-o", alone)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 1

    process = run_command(table, "-o", spread, "--ray", "--ray-cores", "1")
    deadline = time.monotonic() + SECONDS
    while lines(spread) < len(BROKEN) + 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    there = workers()
    assert len(there) == 2
    os.kill(min(there), signal.SIGKILL)
    printed, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, told
    # Ray tells of the lost worker on standard output before it
    assert printed.splitlines()[-1] == f"13 of 16 rows are done, 3 failed: see {spread / MANIFEST}"
    assert pixels(spread) == pixels(alone) and len(pixels(spread)) == 13
    assert entries(spread).keys() == entries(alone).keys()
    assert all(f"{name}: " in told for name in BROKEN)
