"""``scripts/batch``: a table of prompts in, picture files and a manifest out, through the same service as
``scripts/predict``.

The whole table is checked before a model is loaded: names, types and ranges before anything heavy is imported, then
what depends on the installed files.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.core.files import writing_to
from backend.core.settings import Settings, load_settings
from backend.core.texts import one_line
from backend.nodes.images import FACTS, ImageGenerateNode, MakePictures, Outcome, Report, clearing_helps
from backend.nodes.ray_data import LOCAL, generate_with_ray
from backend.nodes.result_log import MANIFEST, Manifest
from backend.nodes.table import Row, read_table
from modules.cli.command import FAILED, CommandParser, check_folder, exit_with, run_in_scratch
from modules.cli.given_inputs import check_inputs, check_texts

if TYPE_CHECKING:
    from modules.input_checks import InputChecks


def _parser() -> CommandParser:
    parser = CommandParser(
        "scripts/batch",
        description=(
            "Generates the pictures of a table of prompts, row by row. Columns are the inputs of scripts/predict, and "
            "'id', which names the files."
        ),
        epilog=(
            f"Every row gets a line in {MANIFEST}: prompt, seed, files, seconds, memory, or what is wrong with it. "
            "See docs/batch.md."
        ),
    )
    parser.add_argument("table", type=Path, help="a .csv, .tsv or .jsonl file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the pictures and the manifest"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue: make only the rows that are not done in that folder"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="distribute the rows over a Ray cluster, or over this machine",
    )
    parser.add_argument(
        "--ray-cores",
        type=_cores,
        default=4,
        metavar="N",
        help="cores per worker where the cluster has no GPU (default: 4)",
    )
    return parser


def _cores(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not '{text}'")
    return int(text)


class RowsBar:
    """How many rows are done and how long the others will take: a bar on a terminal, in a log a line for every row."""

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.bar: tqdm[None] = tqdm(
            total=total, initial=done, desc="rows", unit="row", file=self.stream, disable=not self.stream.isatty()
        )
        self.total, self.done, self.initial, self.begin = total, done, done, time.monotonic()

    def __enter__(self) -> RowsBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def count(self, outcome: Outcome) -> None:
        """Counts a row as done; prints why a row failed. Rows that were never begun say nothing of the speed, and count
        as done from the beginning."""
        if outcome.error:
            tqdm.write(one_line(f"{outcome.row.id}: {outcome.error}"), file=self.stream)
        if outcome.row.problem:
            return
        self.done += 1
        self.bar.update()
        if self.bar.disable:
            seconds = time.monotonic() - self.begin
            print(
                tqdm.format_meter(
                    self.done, self.total, seconds, ncols=60, prefix="rows", unit="row", initial=self.initial
                ),
                file=self.stream,
                flush=True,
            )


def build_node(settings: Settings) -> ImageGenerateNode:
    """The node on a service of its own. Loads the models, so it takes a while."""
    from modules.app.service import start_process
    from modules.pipeline.base import no_progress

    if settings.log_level == "INFO":  # the plan and the times of the set-up are for scripts/predict -v
        settings = replace(settings, log_level="WARNING")
    service = start_process(settings, served=False)
    from backend.offload.oom_fallback import clear_memory  # imports torch, whose environment is set up only now

    logging.getLogger("modules.app.service").setLevel(logging.WARNING)  # the manifest has the seconds of every row
    make = partial(_make, partial(service.predict, progress=no_progress))
    return ImageGenerateNode(make, clear_memory if clearing_helps(service.runtime.plan) else None)


def _make(predict: MakePictures, inputs: Mapping[str, Any], report: Report) -> Sequence[Path]:
    """The pictures of a row; reports what the manifest says about them."""
    from modules.output.image_writer import read_parameters
    from modules.output.summary import facts

    files = predict(inputs, report)
    report(FACTS, facts(read_parameters(file)[1] for file in files))
    return files


def _checked(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """The rows, each with what is wrong with it for the models that are installed here. Loads none."""
    from modules.app.installed_files import checks_before_loading

    checks = checks_before_loading(settings)
    return [row if row.problem else replace(row, problem=_problem(row, checks)) for row in rows]


def _problem(row: Row, checks: InputChecks) -> str:
    try:
        checks.request(row.inputs)
    except InputError as error:
        return str(error)
    return ""


def _outcomes(rows: Sequence[Row], settings: Settings, options: argparse.Namespace, scratch: Path) -> Iterator[Outcome]:
    """First the rows that cannot be made, then the others as they are ready."""
    yield from (Outcome(row, error=row.problem) for row in rows if row.problem)
    good = [row for row in rows if not row.problem]
    if good and options.ray:
        worker = replace(settings, cpu_threads=settings.cpu_threads or options.ray_cores)
        yield from generate_with_ray(good, partial(build_node, worker), options.ray, options.ray_cores, scratch)
    elif good:
        yield from build_node(settings).run(good)


def _run(options: argparse.Namespace, scratch: Path) -> int:
    rows = read_table(options.table, InputSchema(), check_inputs if options.ray else check_texts)
    settings = load_settings()
    check_folder("-o", options.output)
    if not options.ray:  # whose workers may have other files
        rows = _checked(rows, settings)
    manifest = Manifest(options.output)
    to_output = partial(writing_to, f"'{options.output}'", "make room, then continue with --resume")
    with to_output():
        missing = manifest.begin(rows, options.resume)
    failed = 0
    with RowsBar(len(rows), len(rows) - sum(not row.problem for row in missing)) as bar:
        for outcome in _outcomes(missing, settings, options, scratch):
            with to_output():
                manifest.deliver(outcome)
            failed += bool(outcome.error)
            bar.count(outcome)
    with to_output():
        manifest.finish(rows)
    print(
        f"{len(rows) - failed} of {len(rows)} rows are done"
        + (f", {failed} failed: see {manifest.path}" if failed else "")
    )
    return FAILED if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the pictures of one table; returns the exit code."""
    options = _parser().parse_args(arguments)
    return run_in_scratch(lambda folder: _run(options, folder), "continue with --resume")


if __name__ == "__main__":
    exit_with(main)
