"""A manifest that is continued: nothing that lies in its folder can stop that, and what is not sound is made again."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.files import ROOT
from backend.nodes.images import Outcome
from backend.nodes.result_log import MAX_LINE_BYTES, Manifest
from backend.nodes.table import Row, rows_of


def picture(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def rows() -> list[Row]:
    return rows_of([{"id": name, "prompt": name} for name in "abc"], InputSchema())


@pytest.fixture
def lines(rows: list[Row], tmp_path: Path) -> list[bytes]:
    """The lines of a table of three rows that is done."""
    manifest = Manifest(tmp_path)
    manifest.begin(rows, resume=False)
    for row in rows:
        manifest.deliver(Outcome(row, (picture("red"), picture("blue")), ".png"))
    return manifest.path.read_bytes().splitlines(keepends=True)


def resumed(folder: Path, rows: list[Row], *lines: bytes) -> str:
    """The ids of the rows that are made again when the manifest has these lines; then each has one line."""
    manifest = Manifest(folder)
    manifest.path.write_bytes(b"".join(lines))
    missing = manifest.begin(rows, resume=True)
    kept = [json.loads(line)["id"] for line in manifest.path.read_text().splitlines()]
    assert sorted(kept + [row.id for row in missing]) == ["a", "b", "c"]
    return "".join(row.id for row in missing)


def changed(line: bytes, **values: Any) -> bytes:
    return json.dumps({**json.loads(line), **values}).encode() + b"\n"


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda line: line[:40] + b"\n",
    "zero bytes": lambda line: b"\0" * len(line) + b"\n",
    "zero bytes inside": lambda line: line[:30] + b"\0\0" + line[32:],
    "not UTF-8": lambda line: b"\xff\xfe" + line,
    "UTF-16": lambda line: line.rstrip().decode().encode("utf-16") + b"\n",
    "a list": lambda line: b"[1, 2]\n",
    "a number": lambda line: b"17\n",
    "null": lambda line: b"null\n",
    "a text": lambda line: b'"a"\n',
    "empty": lambda line: b"\n",
    "two lines in one": lambda line: line.rstrip() + line,
    "deep": lambda line: b"[" * 100_000 + b"\n",
    "huge": lambda line: line.rstrip() + b" " * 2 * MAX_LINE_BYTES + b"\n",
    "a huge number": lambda line: changed(line, peak_bytes=0)[:-2] + b', "n": 1' + b"0" * 10_000 + b"}\n",
    "without an id": lambda line: changed(line, id=None),
    "an id that is a list": lambda line: changed(line, id=["b"]),
    "another status": lambda line: changed(line, status={"done": 1}),
    "without files": lambda line: changed(line, files={}),
    "files that are a list": lambda line: changed(line, files=["b-0.png"]),
    "sizes that are texts": lambda line: changed(line, files={"b-0.png": "large"}),
    "inputs that are null": lambda line: changed(line, inputs=None),
    "digests that are a number": lambda line: changed(line, sha256=1),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_skipped_with_a_warning_and_its_row_made_again(
    rows: list[Row], lines: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert resumed(tmp_path, rows, lines[0], DAMAGED[name](lines[1]), lines[2]) == "b"
    assert caplog.messages[0].startswith("manifest.jsonl: ") and "damaged" in caplog.messages[0]


def test_a_line_that_a_kill_cut_off_is_no_cause_for_a_warning(
    rows: list[Row], lines: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resumed(tmp_path, rows, *lines[:2], lines[2][:50]) == "c"
    assert resumed(tmp_path, rows, *lines[:2], lines[2].rstrip()) == ""
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["x" * 100, "../up", "a b"])
def test_a_row_of_any_id_is_recognized(tmp_path: Path, name: str) -> None:
    rows = rows_of([{"id": name, "prompt": "x"}], InputSchema())
    manifest = Manifest(tmp_path)
    manifest.begin(rows, resume=False)
    manifest.deliver(Outcome(rows[0], (picture("red"),), ".png"))
    assert manifest.begin(rows, resume=True) == []


def test_the_last_line_of_a_row_counts(rows: list[Row], lines: list[bytes], tmp_path: Path) -> None:
    failed = b'{"id": "b", "status": "failed", "error": "no"}\n'
    assert resumed(tmp_path, rows, *lines, lines[1], lines[1]) == ""
    assert resumed(tmp_path, rows, *lines, failed) == "b"
    assert resumed(tmp_path, rows, failed, *lines) == ""


def test_a_line_of_no_row_is_dropped_with_a_warning(
    rows: list[Row], lines: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resumed(tmp_path, rows, *lines, changed(lines[0], id="nobody")) == ""
    assert caplog.messages == ["manifest.jsonl: 1 lines are of no row of this table and are dropped"]


SPOILED: dict[str, Callable[[Path], object]] = {
    "zero bytes": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
    "another picture's end": lambda file: file.write_bytes(file.read_bytes()[:-20] + b"x" * 20),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("has_digests", [True, False], ids=["with digests", "as by version 1"])
def test_a_picture_that_is_not_as_it_was_written_is_made_again(
    rows: list[Row], lines: list[bytes], tmp_path: Path, name: str, has_digests: bool
) -> None:
    if not has_digests:
        lines = [changed(line, sha256={}) for line in lines]
    assert resumed(tmp_path, rows, *lines) == ""
    SPOILED[name](tmp_path / "b-1.png")
    assert resumed(tmp_path, rows, *lines) == "b"


@pytest.mark.parametrize("name", ["../b-0.png", "/etc/hostname", "a-0.png", "b-0.png\0", "b-/../a-0.png"])
def test_a_line_can_name_no_file_but_those_of_its_row(
    rows: list[Row], lines: list[bytes], tmp_path: Path, name: str
) -> None:
    assert resumed(tmp_path, rows, lines[0], changed(lines[1], files={name: 80}), lines[2]) == "b"


HOLD = """
import sys
from pathlib import Path
from backend.nodes.result_log import Manifest
manifest = Manifest(Path(sys.argv[1]))
manifest.begin([], resume=True)
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_second_process_does_not_write_into_the_same_folder(rows: list[Row], tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout and other.stdout.readline() == "begun\n"
    with pytest.raises(InputError, match=r"^-o: another scripts/batch is writing to '"):
        Manifest(tmp_path).begin(rows, resume=True)
    other.kill()
    other.communicate()
    assert Manifest(tmp_path).begin(rows, resume=True) == rows
