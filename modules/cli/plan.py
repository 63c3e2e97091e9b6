"""``scripts/plan``: the memory plan for a card that one need not have: where each model is placed, how full the card
gets, how long a picture takes.

Needs nothing but Python 3.11; neither this module nor what it imports may import torch.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.core.errors import InputError, SettingsError, UserError
from backend.core.files import ROOT
from backend.core.units import format_bytes, parse_bytes
from backend.memory_management import (
    WEIGHT_PRECISIONS,
    DeviceMemory,
    MemoryPlan,
    MemoryPlanError,
    MemoryRules,
    Workload,
    plan_memory,
)
from backend.planning.advice import DEVICE, HOST, Change
from backend.planning.card_tables import card_table, cards_document, one_card_table
from backend.planning.companions import with_embedded_companions
from backend.planning.gpu_specs import card_named, emulated_memory, nearest_card
from backend.planning.model_specs import ModelSpec
from backend.planning.redraw_tiles import MOST_IN_ONE_PASS
from backend.planning.report import plan_as_data, plan_as_text
from modules.cli.command import BAD_INPUT, CommandParser
from modules.families.registry import identify, known_models
from modules.families.source import Source

EMBEDDED = "embedded"


def amount(text: str) -> int:
    try:
        return parse_bytes(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def amount_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else amount(text)


def weight_precision(text: str) -> str:
    """The name that it has now: "bf16" was called "exact"."""
    return "bf16" if text == "exact" else text


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 1024x1024")
    return int(found[1]), int(found[2])


def size_or_off(text: str) -> tuple[int, int] | None:
    return None if text.strip().lower() == "off" else size(text)


def factor(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 8:
        raise argparse.ArgumentTypeError(f"must be from 1 to 8, not {text}")
    return value


def _parser() -> CommandParser:
    parser = CommandParser(
        "scripts/plan",
        description="The memory plan for any card: where each model is placed, how full it gets, how long it takes.",
        epilog="GB is 10^9 bytes, GiB is 2^30. Exit status: 2 when something is wrong or nothing fits.",
    )
    add = parser.add_argument
    add("--vram", type=amount, metavar="24GB", help="memory of the card")
    add("--card", metavar="NAME", help="a usual card in place of its memory, such as 'RTX 4090'")
    add(
        "--desktop",
        type=amount_or_none,
        metavar="1.5GiB",
        help="what other programs hold of the card's memory (1.5GiB with --card of a consumer card, else 0)",
    )
    add("--ram", type=amount, default=64 * 10**9, metavar="64GB", help="host memory that may be used (64GB)")
    add(
        "--model",
        choices=[*known_models(), EMBEDDED],
        default="flux-dev",
        help="'embedded' is planned for an emulated device (%(default)s)",
    )
    add("--size", type=size, metavar="1024x1024", help="width x height of the first pass (the model's native size)")
    add("--finish", type=size, metavar="3000x2000", help="size of a picture that is finished in place of drawing one")
    add("--outputs", type=int, choices=range(1, 5), default=1, help="pictures in one prediction (1)")
    add("--references", type=int, default=0, metavar="N", help="pictures that the model looks at (0)")
    add("--hires", type=size_or_off, metavar="2048x2048", help="size of a second pass (off)")
    add("--hr-tiles", choices=("auto", "on", "off"), default="auto", help="draw the second pass in tiles (%(default)s)")
    add("--scale", type=factor, default=2.0, metavar="2", help="factor of the final upscale, 1 = off (2)")
    add("--no-adetailer", action="store_true", help="without ADetailer")
    add("--bandwidth", type=amount, metavar="25GB/s", help="copies from host to card (that of a usual card)")
    add(
        "--weight-precision",
        "--quality",  # its old name
        type=weight_precision,
        choices=WEIGHT_PRECISIONS,
        default="auto",
        help="how far weights may be rounded (%(default)s)",
    )
    add("--json", action="store_true", help="the plan's fields by name")
    add("--cards", action="store_true", help="the markdown tables of docs/cards.md: every family on usual cards")
    add(
        "--table",
        action="store_true",
        help="a markdown table: of usual cards, as in docs/memory.md, or with --card of every model on that card",
    )
    return parser


def _embedded_spec(folder: Path) -> ModelSpec:
    """The embedded models, computing in float32. Raises :class:`backend.core.errors.WeightsError`."""
    model = identify(Source(folder / "flux"))
    return with_embedded_companions(model.spec("fp32"), folder, "fp32")


def _device(options: argparse.Namespace) -> tuple[DeviceMemory, str]:
    """The device to plan for, and in words what is assumed of it."""
    if options.model == EMBEDDED:
        device = emulated_memory(options.vram, options.ram, options.bandwidth)
        return device, "Emulated device: host memory with a budget."
    card = card_named(options.card) if options.card else nearest_card(options.vram)
    held = (card.held_bytes if options.card else 0) if options.desktop is None else options.desktop
    device = card.device(options.vram, options.ram, options.bandwidth, held)
    if held >= device.total_bytes:
        raise InputError("--desktop", f"{format_bytes(held)} is all of the card; give less")
    desktop = f" A desktop holds {format_bytes(held)} of it (--desktop)." if held else ""
    return device, (
        f"Speed of an {card.name}: {device.flops / 1e12:.0f} TFLOP/s, {device.copy_bandwidth / 1e9:.0f} GB/s from the "
        f"host. It is sold with {card.gib} GB and reports about {card.reported_bytes / 1e9:.1f} GB of 10^9 bytes."
        f"{desktop}"
    )


def _workload(options: argparse.Namespace, models: ModelSpec) -> Workload:
    """Raises InputError for more reference pictures than the model takes, and for a picture that is drawn and
    finished."""
    most = models.pictures.most - models.pictures.needed
    if not 0 <= options.references <= most:
        raise InputError("--references", f"must be from 0 to {most} for {models.name}, not {options.references}")
    if options.finish and (options.size or options.hires):
        raise InputError("--finish", "is for a picture that is there already; leave out --size and --hires")
    width, height = options.size or (models.native, models.native)
    return Workload(
        width,
        height,
        outputs=options.outputs,
        steps=models.steps,
        references=options.references,
        hires=options.hires,
        hires_tiles=options.hr_tiles == "on",
        detail_crop=0 if options.no_adetailer else models.native,
        scale=options.scale,
        finished=options.finish,
    )


OPTIONS = {
    "weight_precision": "--weight-precision {}",
    "num_outputs": "--outputs {}",
    "hr_scale": "--hires {}",
    "width and height": "--size {}",
    "image": "--finish {}",
    "adetailer": "--no-adetailer",
    "scale": "--scale {}",
    DEVICE: "--vram {}",
    HOST: "--ram {}",
}
"""How a change of the request or the machine is given to this command."""


def _as_options(changes: Sequence[Change]) -> str:
    return " ".join(OPTIONS[change.field].format(change.value) for change in changes)


def _plan(options: argparse.Namespace, device: DeviceMemory, models: ModelSpec) -> MemoryPlan:
    """With ``--hr-tiles auto`` the second pass is planned in tiles where a request would draw it so."""
    rules, workload = MemoryRules(weight_precision=options.weight_precision), _workload(options, models)
    in_tiles = replace(workload, hires_tiles=True)
    if options.hires is None or options.hr_tiles != "auto":
        return plan_memory(device, models, workload, rules)
    if math.prod(options.hires) > MOST_IN_ONE_PASS * models.native**2:
        return plan_memory(device, models, in_tiles, rules)
    try:
        return plan_memory(device, models, workload, rules)
    except MemoryPlanError:
        return plan_memory(device, models, in_tiles, rules)


def _tables(options: argparse.Namespace) -> str:
    known = known_models()
    if options.cards:
        # those that read pictures are FLUX.1-dev but for what their own rows say elsewhere
        return cards_document(spec for spec in known.values() if not spec.pictures.needed)
    return one_card_table(card_named(options.card), known.values()) if options.card else card_table(known["flux-dev"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the plan; gives the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (
        not (options.table or options.cards)
        and options.vram is None
        and (not options.card or options.model == EMBEDDED)
    ):
        parser.error("--vram is needed, for instance --vram 24GB, or --card 'RTX 4090'")
    try:
        if options.table or options.cards:
            print(_tables(options))
            return 0
        models = known_models().get(options.model) or _embedded_spec(ROOT / "weights" / EMBEDDED)
        device, assumed = _device(options)
        plan = _plan(options, device, models)
    except MemoryPlanError as error:
        print(f"{error.field}: {error.problem}; run it again with {_as_options(error.changes)}", file=sys.stderr)
        return BAD_INPUT
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(plan_as_data(plan), indent=2) if options.json else f"{plan_as_text(plan, models)}\n- {assumed}")
    return 0
