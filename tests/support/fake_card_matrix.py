"""All that ``integration/test_fake_card_placements.py`` samples: every family, as large as published, on cards of 80 to
8 GB, in every placement and precision, for every request::

    python -m bench.memory.fake_card_matrix RESULTS.jsonl [--seconds 360] [--table]

Each run goes on where the one before ended, in an order that spreads what is done over the whole. What the planner
would not choose is not run, and counted with its reason.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from support.fake_card_requests import FACES, requests_for, workloads_for
from support.fake_card_runs import differences, every_model_placed, faces_at, placements_of, start_with_lora
from support.fake_cuda import FakeCard
from support.sparse_checkpoints import write_flux, write_klein, write_stable_diffusion, write_z_image

from backend.core.settings import Settings
from backend.core.units import format_bytes
from backend.devices.probe import probe_device
from backend.devices.runtime import device_memory
from backend.memory_management import ModelSpec
from backend.planning.costs import KINDS, DeviceMemory, Kind
from backend.planning.rules import DEFAULT_RULES
from backend.planning.search import PlanSearch
from bench.support.markdown import table
from modules.app.model_files import find_files
from modules.extension_optimizer import select

FAMILIES = ("flux1", "klein", "z_image", "sdxl", "sd15")
CARDS = (80, 24, 16, 12, 8)
PRECISIONS = ("", "fp8", "fp8_compute", "nf4")
DTYPES = ("bfloat16", "float16")
REQUESTS = ("text", "image and mask", "hires", "three details", "lora")
STEPS = 6
WITHOUT = ("prompt_upsampler", "upscale", "face_enhance", "safety_check")
"""Extensions that none of these requests asks for."""


@dataclass(frozen=True)
class Case:
    """A service: one family on one card, all of it placed in one way."""

    family: str
    gib: int
    kind: Kind
    precision: str
    dtype: str


def cases() -> list[Case]:
    """All of them, mixed, and always in the same order."""
    every = [Case(*values) for values in product(FAMILIES, CARDS, KINDS, PRECISIONS, DTYPES)]
    random.Random(0).shuffle(every)
    return every


class Models:
    """Folders of models of the published sizes, each written when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = cache(self._write)
        self.spec = cache(self._spec)

    def _write(self, family: str) -> Path:
        write = {"flux1": write_flux, "klein": write_klein, "z_image": write_z_image}.get(family)
        return write(self.folder / family) if write else write_stable_diffusion(self.folder / family, family)

    def _spec(self, family: str, dtype: str) -> ModelSpec:
        settings = Settings(model=str(self.model(family)), disabled_extensions=WITHOUT)
        return find_files(settings, select(settings)).spec(getattr(torch, dtype), torch.float16)


def why_never(case: Case, spec: ModelSpec) -> str:
    """Why the planner never places the denoiser so; "" if it may."""
    if case.precision and not spec.components[spec.denoiser].rounds:
        return "its weights are not rounded"
    if case.precision and case.kind == "layer offload":
        return "rounded weights are not streamed layer by layer"
    if case.precision == "fp8_compute" and case.dtype != "bfloat16":
        return "products in fp8 give bfloat16"
    return ""


def refusals(case: Case, spec: ModelSpec, memory: DeviceMemory) -> dict[str, str]:
    """By request, why the planner would not place the models so on a card with this memory."""
    if why := why_never(case, spec):
        return dict.fromkeys(REQUESTS, why)
    placements, workloads = placements_of(spec, case.kind, case.precision), workloads_for(spec, STEPS)
    refused = {}
    for name in REQUESTS:
        search = PlanSearch(memory, spec, workloads.get(name, workloads["text"]), DEFAULT_RULES)
        choice = tuple(search.option(of, placements[of]) for of in spec.components)
        if any(search.missing(choice)):
            refused[name] = "it does not fit"
    return refused


def predictions(case: Case, names: Collection[str], model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """The names of these requests, each with what is not as planned. ``folder`` gets their files."""
    with FakeCard(case.gib) as card, every_model_placed(case.kind, case.precision), faces_at(*FACES):
        memory = device_memory(probe_device("cuda", "auto"), None)
        service = start_with_lora(model, folder / "loras", case.dtype, WITHOUT)
        requests = requests_for(service.spec, folder, STEPS)
        for name in names:
            found = differences(card, service, memory, name, requests[name], case.family, folder / "loras")
            yield name, "; ".join(found)
        del service
        gc.collect()
        if card.driver.registered:
            yield "", f"{format_bytes(sum(card.driver.registered.values()))} stay pinned"


def run(results: Path, seconds: float) -> None:
    """Adds a line a request to ``results`` until the time is up: first all that are refused."""
    end = time.monotonic() + seconds
    known = {(*(line[name] for name in Case.__annotations__), line["request"]) for line in read(results)}
    with tempfile.TemporaryDirectory() as place, results.open("a") as file:

        def note(case: Case, request: str, outcome: str, why: str) -> None:
            file.write(json.dumps({**asdict(case), "request": request, "outcome": outcome, "why": why}) + "\n")
            file.flush()

        models = Models(Path(place))
        left: list[tuple[Case, list[str]]] = []
        for case in cases():
            names = [name for name in REQUESTS if (*asdict(case).values(), name) not in known]
            if names:
                refused = refusals(case, models.spec(case.family, case.dtype), memory_of(case.gib))
                for name in refused.keys() & names:
                    note(case, name, "refused", refused[name])
                left.append((case, [name for name in names if name not in refused]))
        for number, (case, names) in enumerate(one for one in left if one[1]):
            if time.monotonic() > end:
                return
            folder = Path(place) / str(number)
            folder.mkdir()
            waiting = set(names)
            try:
                for name, why in predictions(case, names, models.model(case.family), folder):
                    waiting.discard(name)
                    note(case, name, "failed" if why else "passed", why)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
                where = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                for name in waiting:
                    note(case, name, "failed", told)


@cache
def memory_of(gib: int) -> DeviceMemory:
    """What is there before the set-up."""
    with FakeCard(gib):
        return device_memory(probe_device("cuda", "auto"), None)


def read(results: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def summary(lines: Sequence[Mapping[str, str]]) -> str:
    """Tables: the outcomes by family, and the reasons of what was refused and what failed."""
    rows: list[dict[str, object]] = []
    whole = len(CARDS) * len(KINDS) * len(PRECISIONS) * len(DTYPES) * len(REQUESTS)
    for family in FAMILIES:
        counts = Counter(line["outcome"] for line in lines if line["family"] == family)
        looked = {name: counts[name] for name in ("passed", "failed", "refused")}
        rows.append({"family": family, **looked, "not yet run": whole - sum(looked.values())})
    reasons = Counter((line["outcome"], line["why"]) for line in lines if line["why"])
    told: list[dict[str, object]] = [
        {"outcome": outcome, "why": why, "combinations": count} for (outcome, why), count in reasons.most_common()
    ]
    return table(rows) + ("\n\n" + table(told) if told else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--table", action="store_true", help="only print what the results say")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.results, arguments.seconds)
    print(summary(read(arguments.results)))


if __name__ == "__main__":
    main()
