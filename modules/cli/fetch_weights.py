"""``scripts/fetch-weights``: downloads the models of ``weights/manifest.json``, or says what is missing or wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from backend.checkpoints.file_type import check_content, digest
from backend.core.errors import UserError, WeightsError
from backend.core.settings import load_settings
from backend.weights.catalog import WeightFile, choose_files, read_manifest
from backend.weights.lockfile import LockedFile, exclusive, read_lock, write_lock
from backend.weights.resolver import ONLINE, check_file, remedy
from modules.cli.command import BAD_INPUT, FAILED, INTERRUPTED, CommandParser, exit_with
from modules.output.progress import Bar

SMALL = (".json", ".txt", ".md")
"""Endings of files whose size does not matter for progress."""


class Progress:
    """How much of all files is here, on standard error. Sizes come from the manifest until the hub says them."""

    def __init__(self, files: Sequence[WeightFile]) -> None:
        self._sizes = {file: about_bytes(file) for file in files}
        self._here = dict.fromkeys(files, 0)
        self._lock, self._bar = Lock(), Bar("", unit="B")

    def show(self, file: WeightFile, here: int, size: int) -> None:
        """Takes the bytes of a file that are here and its size; called by several threads."""
        with self._lock:
            self._here[file], self._sizes[file] = here, size
            whole = sum(self._here[file] == size > 0 for file, size in self._sizes.items())
            self._bar.description = f"{whole} of {len(self._here)} files"
            self._bar.show(sum(self._here.values()), sum(self._sizes.values()))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def about_bytes(file: WeightFile) -> int:
    """A file's size by the manifest, which knows that of a part; 0 for a small one."""
    part = next(part for part in read_manifest()[file.model].parts.values() if file in part.files)
    large = [other for other in part.files if not other.path.endswith(SMALL)]
    return part.about_bytes // len(large) if file in large else 0


def parser() -> CommandParser:
    parser = CommandParser(
        "scripts/fetch-weights",
        description="Downloads the models of weights/manifest.json, or says what is missing or wrong.",
        epilog=(
            "Exit status: 0 every file is right, 1 one is not (each has its line), 2 the command is wrong. A token for "
            "gated models comes from HF_TOKEN or the file that HF_TOKEN_PATH names. Interrupted downloads resume."
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
        help="download nothing; read every byte of what is there and say what is missing or wrong",
    )
    parser.add_argument("--list", action="store_true", help="list the models and what is installed of them")
    parser.add_argument(
        "--trust", type=Path, metavar="FILE", help="add a file of your own to the lock, by its checksum"
    )
    return parser


def check(files: Sequence[WeightFile], folder: Path, jobs: int) -> Iterator[tuple[WeightFile, str]]:
    """Every file with its problem, empty where there is none. Reads all bytes."""
    lock = read_lock(folder)

    def problem(file: WeightFile) -> str:
        path = folder / file.local
        if not path.is_file():
            return f"{file.local}: is missing; scripts/fetch-weights --only {file.model} downloads it"
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
            return f"{file.local}: cannot be read ({error.strerror}); {remedy(file.local)}"
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


def list_models(folder: Path) -> None:
    """Prints a line for every model of the manifest."""
    lock = read_lock(folder)
    for model in read_manifest().values():
        here = sum((folder / file.local).is_file() and file.local in lock for file in model.files)
        state = "installed" if here == len(model.files) else f"{here} of {len(model.files)} files"
        size = f"{model.about_bytes / 1e9:.2f} GB"
        print(
            f"{model.name:<20} {size:>9}  {state:<15} {'gated' if model.gated else 'open':<6} {model.purpose}; "
            f"licence: {model.licence}"
        )


def download(files: Sequence[WeightFile], folder: Path, jobs: int) -> int:
    """Downloads what is missing, a line a file on standard output; gives the number of files that failed."""
    os.environ.update(ONLINE)
    from backend.weights.downloader import fetch

    failed = 0
    with Progress(files) as progress:
        for outcome in fetch(files, folder, jobs, progress.show):
            failed += bool(outcome.problem)
            print(outcome.line, flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        parser().error("--jobs must be at least 1")
    try:
        folder = load_settings().weights_path
        if options.list:
            list_models(folder)
            return 0
        if options.trust:
            trust(options.trust, folder)
            return 0
        files = choose_files(tuple(options.only))
        if not options.check:
            return FAILED if download(files, folder, options.jobs) else 0
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
        print("interrupted; run this again, it resumes where it was", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    exit_with(main)
