"""What keeps the code readable: short files, short functions, tests where the path of the tested file says."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from backend.core.settings import ROOT

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50
LONG_FUNCTIONS = {
    "predict.py: predict": "Cog reads one parameter per input, with its description, from the source",
}
"""Functions that may be longer, with the reason."""


def committed(*patterns: str) -> list[Path]:
    """The files of the repository that match, new ones included; paths are relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(name) for name in listed if (ROOT / name).is_file()]


PYTHON = committed("*.py")


def test_no_file_is_too_long() -> None:
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in PYTHON}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_function_is_too_long_without_a_reason() -> None:
    long = {
        f"{path}: {node.name}": node.end_lineno - node.lineno + 1
        for path in PYTHON
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert {name: count for name, count in long.items() if name not in LONG_FUNCTIONS} == {}
    assert LONG_FUNCTIONS.keys() <= long.keys(), "short by now: it needs no reason any more"


def test_every_unit_test_lies_where_its_file_does() -> None:
    """``unit/A/test_B.py`` or ``unit/A/test_B_ASPECT.py`` tests ``A/B.py``, or the package ``A/B``."""

    def tested(path: Path) -> bool:
        folder, words = Path(*path.parts[2:-1]), path.stem.removeprefix("test_").split("_")
        names = ["_".join(words[:count]) for count in range(1, len(words) + 1)]
        return any((ROOT / folder / f"{name}.py").is_file() or (ROOT / folder / name).is_dir() for name in names)

    assert [str(path) for path in committed("tests/unit/**/test_*.py") if not tested(path)] == []


def test_tests_need_nothing_from_outside_of_the_repository() -> None:
    outside = re.compile(r"ROOT\.parent\b|parents\[[3-9]\]")
    this = Path(__file__).relative_to(ROOT)
    assert [str(path) for path in committed("tests/*.py") if path != this and outside.search(read(path))] == []


@pytest.mark.parametrize("place", [ROOT, Path.home()], ids=["the checkout", "the home folder"])
def test_no_text_names_a_folder_of_one_machine(place: Path) -> None:
    named = re.compile(rf"(?<![\w./]){re.escape(str(place))}/\w")
    assert [str(path) for path in committed() if named.search(read(path))] == []


def read(path: Path) -> str:
    """The text of a file; "" for a picture or weights."""
    content = (ROOT / path).read_bytes()
    return "" if b"\0" in content else content.decode()
