"""What the commands share: one-line errors, ``--version``, exit codes, and a scratch folder."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from backend.compat import run_exit_functions
from backend.core.errors import InputError, StorageError, UserError
from backend.core.files import full_disk_in_one_line
from backend.core.scratch import scratch_folder
from backend.core.version import name_and_version

FAILED, BAD_INPUT, INTERRUPTED, NOT_READ = 1, 2, 130, 141
"""Exit codes beside 0."""


class CommandParser(argparse.ArgumentParser):
    """A parser that knows ``--version`` and reports a mistake in one line, without the usage before it."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog, description=description, **options)
        self.add_argument("--version", action="version", version=name_and_version())

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}\n")


def check_folder(option: str, folder: Path) -> None:
    """Makes the folder that an option names, or raises :class:`InputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "not writable")
    except OSError as error:
        raise InputError(option, f"cannot write to '{folder}': {error.strerror}") from None


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Ends the process with the exit code of ``main``. A reader that ends early, as in ``scripts/plan ... | head``, is
    no error to be shown.

    Python would now take hundreds of thousands of objects apart, one by one, for an eighth of a second where models
    were loaded. The process ends without, as mypy's does.
    """
    code: str | int | None
    try:
        try:
            code = main()
        except SystemExit as end:  # of --help and --version
            code = end.code
        sys.stdout.flush()
    except BrokenPipeError:
        # it is flushed once more below
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = NOT_READ
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = FAILED
    run_exit_functions()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def run_in_scratch(run: Callable[[Path], int], interrupted: str) -> int:
    """The exit code of ``run``, which gets a scratch folder that is deleted afterwards with everything in it.

    A :class:`UserError` becomes one line on standard error. After Ctrl-C or a kill that line is ``interrupted``. A bug
    keeps its stack trace.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill cleans up as Ctrl-C does
    try:
        with full_disk_in_one_line(), scratch_folder() as folder:
            tempfile.tempdir = str(folder)  # temporary files of the service are deleted with it
            return run(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, StorageError) else BAD_INPUT
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
