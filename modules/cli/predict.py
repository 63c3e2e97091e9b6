"""``scripts/predict``: a prompt or ``name=value`` texts in, picture files out, through the same service as Cog's server.

Nothing heavy is imported before the inputs are checked, so that a mistake is reported at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError, UserError
from backend.core.files import atomic_files
from backend.core.timeline_export import SUFFIXES, write_timeline
from modules.cli.command import CommandParser, check_folder, exit_with, run_in_scratch
from modules.cli.given_inputs import PictureSource, with_files_read, with_prompt_named
from modules.output.summary import summary
from modules.request.uploads import Uploads

if TYPE_CHECKING:
    from PIL import Image

    from modules.app.service import Service


OPTIONS: Mapping[tuple[str, ...], Mapping[str, Any]] = MappingProxyType(
    {
        ("inputs",): {"nargs": "*", "metavar": "PROMPT", "help": "what the picture shows, and inputs as NAME=VALUE"},
        ("-i", "--input"): {
            "action": "append",
            "default": [],
            "metavar": "NAME=VALUE",
            "help": "an input; a file is given as NAME=@FILE, also for a long prompt; repeat for more",
        },
        ("--from",): {
            "dest": "source",
            "type": Path,
            "metavar": "FILE",
            "help": "make this picture again: what it says of itself, or a text of parameters, fills what is left out",
        },
        ("-o", "--output"): {
            "type": Path,
            "default": Path(),
            "metavar": "DIR",
            "help": "folder for out-0.webp, out-1.webp, ..., or the next free numbers (default: the current one)",
        },
        ("--timeline",): {
            "type": Path,
            "metavar": "FILE.png",
            "help": "also write where the time went: a chart (.png), or a trace for Perfetto (.json)",
        },
        ("--startup",): {
            "type": Path,
            "metavar": "FILE.png",
            "help": "the same for the time before the prediction, from process start",
        },
        ("--debug-images",): {
            "type": Path,
            "metavar": "DIR",
            "help": "also write pictures that show what ADetailer found and repainted",
        },
        ("--save-before",): {
            "action": "store_true",
            "help": "also write every picture as it was before ADetailer: out-0-before.png, out-1-before.png, ...",
        },
        ("--emulate-vram",): {
            "metavar": "48MB",
            "help": "use the memory plan of a card of this size, with host memory in its place",
        },
        ("--json",): {"action": "store_true", "help": "print files and metrics as one JSON object"},
        ("-v", "--verbose"): {
            "action": "store_true",
            "help": "also print the memory plan, the optimizations and where the time went",
        },
    }
)
"""The arguments of ``add_argument`` for every option."""


def _parser(schema: InputSchema) -> CommandParser:
    lines = [f"  {name:<20} {prop['description']}" for name, prop in schema.properties.items()]
    parser = CommandParser(
        "scripts/predict",
        description="Generates pictures from a prompt: Flux, then ADetailer, then ESRGAN.",
        epilog="inputs:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for names, arguments in OPTIONS.items():
        parser.add_argument(*names, **arguments)
    return parser


def _deliver(files: Sequence[Path], targets: Sequence[Path], replace: bool = True) -> None:
    """Copies all files to their targets, or none: they get their names when all are copied."""
    with atomic_files(targets, replace) as parts:
        for file, part in zip(files, parts, strict=True):
            shutil.copyfile(file, part)


def deliver_numbered(files: Sequence[Path], folder: Path, before: Sequence[Path] = ()) -> list[Path]:
    """Puts all files into the folder, or none, and replaces nothing: the numbers go on after the highest that is there,
    also when another process takes some at the same time. ``before`` are the pictures before ADetailer."""
    first = 0
    while True:
        taken = (re.fullmatch(r"out-(\d{1,9})(-before)?\..+", path.name) for path in folder.glob("out-*"))
        first = max([first, *(int(match[1]) + 1 for match in taken if match)])
        targets = [folder / f"out-{number}{file.suffix}" for number, file in enumerate(files, first)]
        beside = [folder / f"out-{number}-before{file.suffix}" for number, file in enumerate(before, first)]
        try:
            _deliver([*files, *before], [*targets, *beside], replace=False)
        except FileExistsError:
            first += 1
            continue
        return targets


def _record(file: Path) -> dict[str, Any]:
    """Our record in a picture; empty where it cannot be read, which only costs lines of text."""
    from modules.output.image_writer import read_parameters

    try:
        return read_parameters(file)[1]
    except (OSError, ValueError):
        return {}


def _saved(images: Mapping[str, Image.Image], folder: Path) -> list[Path]:
    files = [folder / f"{name}.png" for name in images]
    for file, image in zip(files, images.values(), strict=True):
        image.save(file)
    return files


def _before_adetailer(saved: Sequence[Path], kept: tuple[int, int] | None) -> list[Path]:
    from modules.pipeline.adetailer import BEFORE

    return [file for file in saved if file.stem.startswith(BEFORE) and (not kept or file.stem == f"{BEFORE}{kept[0]}")]


def _started(options: argparse.Namespace, schema: InputSchema, inputs: Mapping[str, object]) -> Service:
    gc.disable()  # nothing that is imported is garbage; start_process enables it again
    from backend.core.settings import load_settings
    from backend.core.units import parse_bytes
    from modules.app.service import start_process

    settings = replace(load_settings(), warm_up=False)  # the one prediction would only wait for it
    if not (options.source or inputs.get("prompt_upsampling")):  # nor for a language model that it does not ask for
        settings = replace(settings, prompt_upsampler="")
    if settings.log_level == "INFO" and not options.verbose:
        settings = replace(settings, log_level="WARNING")
    if options.emulate_vram:
        try:
            parse_bytes(options.emulate_vram)
        except UserError as error:
            raise InputError("--emulate-vram", str(error)) from None
        settings = replace(settings, emulate_vram=options.emulate_vram)
    print("loading the models", file=sys.stderr)
    return start_process(settings, served=False, schema=schema)


def _check_folders(options: argparse.Namespace) -> None:
    check_folder("-o", options.output)
    if options.debug_images:
        check_folder("--debug-images", options.debug_images)
    for option, file in (("--timeline", options.timeline), ("--startup", options.startup)):
        if file:
            check_folder(option, file.parent)
            if file.suffix.lower() not in SUFFIXES:
                raise InputError(option, f"'{file.name}' must end in {' or '.join(SUFFIXES)}")


def _predict(options: argparse.Namespace, schema: InputSchema, temporary: Path) -> int:
    texts = [*with_prompt_named(options.inputs), *options.input]
    given = schema.parse(with_files_read(texts, schema))
    source = PictureSource(options.source, schema) if options.source else None
    if source:
        source.checked(given)
    inputs: Mapping[str, object] = given if source else schema.validate(given)
    inputs = Uploads(temporary).copy_in(inputs)
    _check_folders(options)

    service = _started(options, schema, inputs)
    kept = source.kept(given) if source else None
    if source:
        inputs, notices = source.inputs(inputs, service)
        for notice in notices:
            print(f"note: {notice}", file=sys.stderr)
    metrics: dict[str, Any] = {}
    timeline = service.new_timeline()
    shown: dict[str, Image.Image] = {}
    files = service.predict(
        inputs,
        metrics.__setitem__,
        timeline=timeline,
        debug_sink=shown.__setitem__ if options.debug_images or options.save_before else None,
    )
    if kept:
        files = [file for file in files if _record(file).get("seed") == kept[1]]
    try:
        print(*summary(map(_record, files)), sep="\n", file=sys.stderr)
        saved = _saved(shown, temporary)
        before = _before_adetailer(saved, kept) if options.save_before else []
        written = deliver_numbered(files, options.output, before)
        if options.debug_images:
            _deliver(saved, [options.debug_images / file.name for file in saved])
        if options.timeline:
            write_timeline(timeline, options.timeline)
        if options.startup:
            write_timeline(service.timeline, options.startup)
    except OSError as error:  # the disk is full, say; from anywhere else it would be a bug, and keep its stack trace
        sys.exit(f"error: cannot write the files: {error.strerror}")
    if options.json:
        print(
            json.dumps(
                {"files": [str(file) for file in written], "metrics": metrics, "set_up": service.timeline.metrics()}
            )
        )
    else:
        print(*written, sep="\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one prediction; returns the exit code. Progress and the table of times come from the service."""
    schema = InputSchema()
    options = _parser(schema).parse_intermixed_args(arguments)
    return run_in_scratch(lambda folder: _predict(options, schema, folder), "no file was written")


if __name__ == "__main__":
    exit_with(main)
