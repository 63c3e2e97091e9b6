"""How every command ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backend.core.settings import ROOT
from modules.cli.command import NOT_READ


def ended(body: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command whose ``main`` has this body. Both go through pipes,
    so that Python keeps what is printed until it is flushed."""
    code = f"""
import atexit, sys
from modules.cli.command import exit_with
atexit.register(print, "first registered")
atexit.register(print, "tidied up")
def main():
    {body}
exit_with(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "code", "output", "errors"),
    [
        ("print('made'); return 0", 0, "made\n", ""),
        ("print('a warning', file=sys.stderr); return 2", 2, "", "a warning\n"),
        ("sys.exit()", 0, "", ""),
        ("sys.exit('error: the disk is full')", 1, "", "error: the disk is full\n"),
    ],
)
def test_a_command_ends_with_its_code_and_all_that_it_printed(body: str, code: int, output: str, errors: str) -> None:
    assert ended(body) == (code, f"{output}tidied up\nfirst registered\n", errors)


def test_a_reader_that_ends_early_is_no_error_and_the_end_is_as_tidy() -> None:
    code = """
import atexit, sys
from modules.cli.command import exit_with
atexit.register(print, "tidied up", file=sys.stderr)
def main():
    for _ in range(100_000): print("a line of a long table")
    return 0
exit_with(main)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "tidied up\n"
        assert process.wait(60) == NOT_READ


def test_a_bug_keeps_its_stack_trace() -> None:
    code, output, errors = ended("raise LookupError('a bug')")
    assert code == 1 and "Traceback" in errors and "LookupError: a bug" in errors
    assert output.startswith("tidied up")
