"""A file is never seen half-written, whatever goes wrong, and a user's name never leads out of the folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.core.errors import StorageError
from backend.core.files import (
    MAX_NAME_BYTES,
    PART_PATTERN,
    ROOT,
    atomic_files,
    full_disk_in_one_line,
    is_safe_name,
    write_atomic,
)

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from backend.core.files import atomic_files
with atomic_files([Path(sys.argv[1])]) as [part]:
    part.write_bytes(b"half")
    print("written", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with atomic_files([target]) as [part]:
        part.write_text("new")
        assert target.read_text() == "old" and part.parent == tmp_path
    assert target.read_text() == "new" and names(tmp_path) == ["a.json"]


def test_of_several_files_none_appears_when_one_fails(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(OSError, match="full"), atomic_files(targets) as parts:
        parts[0].write_bytes(b"a")
        raise OSError("full")
    assert names(tmp_path) == []


def test_of_several_files_none_appears_when_one_was_not_written(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(FileNotFoundError), atomic_files(targets) as parts:
        parts[0].write_bytes(b"a")
    assert names(tmp_path) == []


def test_after_a_kill_the_old_content_is_there_and_what_is_left_is_known_by_its_name(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, target],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert target.read_bytes() == b"old"
    assert [path.read_bytes() for path in tmp_path.glob(PART_PATTERN)] == [b"half"]


def test_what_a_killed_process_left_goes_when_the_next_one_writes_into_the_folder(tmp_path: Path) -> None:
    left, own = tmp_path / ".a.bin.01234567.flux.part", tmp_path / ".own.part"
    for file in (left, own):
        file.write_bytes(b"half")
    write_atomic(tmp_path / "b.txt", "b")
    assert names(tmp_path) == [".own.part", "b.txt"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    with atomic_files([tmp_path / "a"]) as [first], atomic_files([tmp_path / "a"]) as [second]:
        first.write_bytes(b"1")
        second.write_bytes(b"2")
        write_atomic(tmp_path / "b", b"3")
        assert first.exists() and second.exists() and first != second
    assert (tmp_path / "a").read_bytes() == b"1" and names(tmp_path) == ["a", "b"]


def test_a_name_that_is_taken_is_refused_where_nothing_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    with (
        pytest.raises(FileExistsError),
        atomic_files([tmp_path / "a", tmp_path / "b", tmp_path / "c"], replace=False) as parts,
    ):
        for part in parts:
            part.write_bytes(b"new")
    assert names(tmp_path) == ["b"] and (tmp_path / "b").read_bytes() == b"old"


def test_of_many_that_want_one_name_one_gets_it(tmp_path: Path) -> None:
    def write(number: int) -> bool:
        try:
            with atomic_files([tmp_path / "a"], replace=False) as [part]:
                part.write_bytes(str(number).encode())
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(write, range(50)))
    assert got.count(True) == 1 and (tmp_path / "a").read_bytes() == str(got.index(True)).encode()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_line_also_when_the_error_was_wrapped(wrapped: bool) -> None:
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
        except OSError as error:
            if wrapped:
                raise RuntimeError("it does not compile") from error
            raise

    with (
        pytest.raises(StorageError, match=r"^the disk of the temporary files.* is full; make room"),
        full_disk_in_one_line(),
    ):
        fail()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), full_disk_in_one_line():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_text_is_utf_8_and_others_may_read_the_file(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a.txt", "ä\n")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["a", "row-01", "a.b_c", "ä", "x" * MAX_NAME_BYTES])
def test_a_name_that_is_safe(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a b", "a\n", "a\0", "ä" * 51])
def test_a_name_that_is_not(name: str) -> None:
    assert not is_safe_name(name)
