"""The command ``scripts/fetch-weights``: brings the models of ``weights/manifest.json``, or says what is missing or
wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock, Thread

from backend.checkpoints.file_type import check_content, digest
from backend.core.errors import UserError, WeightsError
from backend.core.settings import load_settings
from backend.weights.catalog import WeightFile, choose_files, read_manifest
from backend.weights.lockfile import LockedFile, exclusive, read_lock, write_lock
from backend.weights.resolver import brings, check_file
from modules.cli.command import BAD_INPUT, FAILED, INTERRUPTED, CommandParser

EVERY_TTY, EVERY_LOG = 0.5, 15.0
"""Seconds between two lines of progress."""


class Progress:
    """How far every file and all of them are, on standard error: one line that moves, or a line now and then where
    that is a log."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        self._here = {file.local: (0, 0) for file in files}
        self._lock, self._done, self._begin, self._before = Lock(), Event(), time.monotonic(), 0
        self._moving = sys.stderr.isatty()

    def tell(self, file: WeightFile, here: int, size: int) -> None:
        with self._lock:
            if self._here[file.local] == (0, 0):
                self._before += here  # of an earlier run, or installed: not this run's speed
            self._here[file.local] = (here, size)

    def line(self) -> str:
        with self._lock:
            states = dict(self._here)
        here, size = (sum(state[index] for state in states.values()) for index in (0, 1))
        whole = sum(done == of > 0 for done, of in states.values())
        speed = (here - self._before) / (time.monotonic() - self._begin)
        moving = [
            f"{name.rpartition('/')[2]} {100 * done // of}%" for name, (done, of) in states.items() if 0 < done < of
        ]
        return (
            f"{whole} of {len(states)} files, {here / 1e9:.2f} of {size / 1e9:.2f} GB known, {speed / 1e6:.0f} MB/s  "
            f"{', '.join(moving)}"
        )

    def __enter__(self) -> Progress:
        Thread(target=self._show, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._moving:
            print("\r\x1b[K", end="", file=sys.stderr)
        print(self.line(), file=sys.stderr)

    def _show(self) -> None:
        while not self._done.wait(EVERY_TTY if self._moving else EVERY_LOG):
            print(
                f"\r\x1b[K{self.line()[:160]}" if self._moving else self.line(),
                end="" if self._moving else "\n",
                file=sys.stderr,
                flush=True,
            )


def parser() -> CommandParser:
    parser = CommandParser(
        "scripts/fetch-weights",
        description="Downloads the models of weights/manifest.json, or says what is missing or wrong.",
        epilog=(
            "Exit status: 0 all is right, 1 a file is not (each has its line), 2 the command is wrong. A token for "
            "gated models comes from HF_TOKEN "
            "or the file that HF_TOKEN_PATH names. What is interrupted goes on where it was."
        ),
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a model, MODEL/PART, a file, or a pattern; repeat for more",
    )
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="files at a time (4)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="bring nothing; read every byte of what is there and say what is missing or wrong",
    )
    parser.add_argument("--list", action="store_true", help="what the manifest knows, and what is here of it")
    parser.add_argument(
        "--trust", type=Path, metavar="FILE", help="add a file of one's own to the lock, by its checksum"
    )
    return parser


def check(files: Sequence[WeightFile], folder: Path, jobs: int) -> Iterator[tuple[WeightFile, str]]:
    """Every file with what is wrong with it, or nothing. All bytes are read."""
    lock = read_lock(folder)

    def problem(file: WeightFile) -> str:
        path = folder / file.local
        if not path.is_file():
            return f"{file.local}: is missing; scripts/fetch-weights --only {file.model} brings it"
        if file.local not in lock:
            return (
                f"{file.local}: is not in the lock; scripts/fetch-weights --only {file.model} compares it with the "
                "hub's"
            )
        try:
            check_file(file.local, path, lock, whole=True)
        except WeightsError as error:
            return str(error)
        except OSError as error:
            return f"{file.local}: cannot be read ({error.strerror}); {brings(file.local)}"
        return ""

    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(files, pool.map(problem, files))


def trust(path: Path, folder: Path) -> None:
    """Adds a file of the user's own to the lock. It is still read by restricted loaders only."""
    if not path.is_file():
        raise WeightsError(f"{path.name}: there is no such file")
    check_content(path, path.name)
    inside = path.resolve().is_relative_to(folder.resolve())
    local = path.resolve().relative_to(folder.resolve()).as_posix() if inside else path.name
    with exclusive(folder):
        lock = read_lock(folder)
        lock[local] = LockedFile(path.stat().st_size, digest(path))
        write_lock(folder, lock)
    print(f"trusted {local}")


def show(folder: Path) -> None:
    lock = read_lock(folder)
    for model in read_manifest().values():
        here = sum((folder / file.local).is_file() and file.local in lock for file in model.files)
        state = "installed" if here == len(model.files) else f"{here} of {len(model.files)} files"
        size = f"{model.about_bytes / 1e9:.2f} GB"
        print(
            f"{model.name:<20} {size:>9}  {state:<15} {'gated' if model.gated else 'open':<6} {model.purpose}; "
            f"licence: {model.licence}"
        )


def bring(files: Sequence[WeightFile], folder: Path, jobs: int) -> int:
    # read when the hub's library is imported: to go online is what this command is for, to tell about itself is not
    os.environ.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1")
    from backend.weights.downloader import fetch

    failed = 0
    with Progress(files) as progress:
        for outcome in fetch(files, folder, jobs, progress.tell):
            failed += bool(outcome.problem)
            print(
                f"failed {outcome.problem}"
                if outcome.problem
                else f"ok {outcome.file.local} ({outcome.bytes:,} bytes, {outcome.seconds:.1f} s)",
                flush=True,
            )
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        parser().error("--jobs must be at least 1")
    try:
        folder = load_settings().weights_path
        if options.list:
            show(folder)
            return 0
        if options.trust:
            trust(options.trust, folder)
            return 0
        files = choose_files(tuple(options.only))
        if not options.check:
            return FAILED if bring(files, folder, options.jobs) else 0
        problems = [problem for _, problem in check(files, folder, options.jobs) if problem]
        print(
            *(f"failed {problem}" for problem in problems),
            f"{len(files) - len(problems)} of {len(files)} files are right",
            sep="\n",
        )
        return FAILED if problems else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; run this again, it goes on where it was", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
