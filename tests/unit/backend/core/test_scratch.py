"""Temporary folders of a killed process are deleted by the next one, those of a living process by nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.core.errors import StorageError
from backend.core.files import ROOT
from backend.core.scratch import PREFIX, hold, scratch_folder

MAKE_AND_WAIT = """
import sys
from pathlib import Path
from backend.core.scratch import {name}
{statement}
(folder / "content").mkdir()
print(folder, flush=True)
sys.stdin.read()
"""
BLOCK = {"name": "scratch_folder", "statement": "scratch = scratch_folder(); folder = scratch.__enter__()"}
PROCESS = {"name": "scratch_for_process", "statement": "folder = scratch_for_process()"}


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def started(how: dict[str, str]) -> tuple[subprocess.Popen[str], Path]:
    """Another process, and the folder that it uses until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT.format(**how)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_folder_is_deleted_with_its_content_when_the_block_ends(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        (folder / "file").write_bytes(b"1")
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_the_process_is_deleted_when_it_ends(tmp_path: Path) -> None:
    process, folder = started(PROCESS)
    assert folder.is_dir()
    process.communicate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [BLOCK, PROCESS], ids=["block", "process"])
def test_what_a_killed_process_left_is_deleted_by_the_next_one(tmp_path: Path, how: dict[str, str]) -> None:
    process, left = started(how)
    kill(process)
    assert (left / "content").is_dir()
    with scratch_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_the_folder_of_a_living_process_stays() -> None:
    process, folder = started(PROCESS)
    with scratch_folder():
        assert (folder / "content").is_dir()
    process.communicate()


def test_a_folder_that_two_processes_hold_stays_until_both_are_gone() -> None:
    process, folder = started(PROCESS)
    lock = hold(folder)
    kill(process)
    with scratch_folder():
        assert folder.is_dir()
    os.close(lock)
    with scratch_folder():
        assert not folder.exists()


def test_only_folders_of_this_name_are_deleted_and_no_link_is_followed(tmp_path: Path) -> None:
    kept = tmp_path / "flux-adetailer-12345678"
    kept.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(kept)
    (tmp_path / f"{PREFIX}file").write_bytes(b"1")
    with scratch_folder():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [kept.name, f"{PREFIX}file", f"{PREFIX}link"]


def test_a_forked_child_leaves_the_folder_of_its_parent(tmp_path: Path) -> None:
    """In a child that multiprocessing forks, Python 3.13 drops what the parent registered for its own end."""
    code = """
import atexit, os
from backend.core.scratch import scratch_for_process
folder = scratch_for_process()
child = os.fork()
if not child:
    atexit._clear()
    os._exit(0)
os.waitpid(child, 0)
print(folder.is_dir())
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert not list(tmp_path.iterdir()), "and it goes with its own process"


def test_folders_made_and_swept_at_once_are_all_there() -> None:
    def use(number: int) -> bool:
        with scratch_folder() as folder:
            (folder / str(number)).write_bytes(b"1")
            return [path.name for path in folder.iterdir()] == [str(number)]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(200)))


def test_a_temporary_directory_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(StorageError, match=r"^cannot make a temporary folder \(No such file .*TMPDIR"),
        scratch_folder(),
    ):
        pass
