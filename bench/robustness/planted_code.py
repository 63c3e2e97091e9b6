"""Does a command run code that lies in a model's files? Every place with every command, and "yes" to every question.

    python -m bench.robustness.planted_code [--commands predict batch ...] [--places TEXT ...] [--json FILE]

Each run has a folder of weights of its own, in which one place holds code that makes a file. It must not be made,
nothing may be asked, and the command ends with a picture or with one line. ``tests/security/test_planted_code.py`` does
the same with the functions that read the files. Exit code 1 if code ran, or a command ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.support.markdown import table
from bench.support.planted_code import PLACES, Place

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "weights" / "embedded"
SECONDS = 300
ANSWERS = "yes\n" * 100_000
QUESTION = "Do you wish to run"

FOLDERS: Mapping[str, str] = {
    "prompt_upsampler": "embedded/prompt_upsampler",
    "flux": "embedded/flux",
    "detector": "embedded",
    "upscaler": "upscalers",
    "class names": "clip-vit-base-patch32",
}
"""Under the weights, by part of a place."""


@dataclass(frozen=True)
class Run:
    place: str
    command: str
    outcome: str
    seconds: float


def commands(weights: Path, out: Path) -> Mapping[str, Sequence[object]]:
    """What is run by name, for these weights: a module as its script in scripts/ runs it, or a program."""
    rows = out / "rows.csv"
    rows.write_text("id,prompt,num_inference_steps,scale,prompt_upsampling\na,a fox,1,1,true\n")
    inputs = ("prompt=a fox", "num_inference_steps=1", "scale=1", "prompt_upsampling=true")
    return {
        "predict": ("modules.cli.predict", *(word for one in inputs for word in ("-i", one)), "-o", out),
        "batch": ("modules.cli.batch", rows, "-o", out),
        "doctor": ("modules.cli.doctor",),
        "check": ("modules.cli.fetch_weights", "--check"),
        "convert": ("modules.cli.convert_weights", *sorted(path for path in weights.glob("*.p*t*"))),
        "language model": (
            "examples/inference_cuda_optimized.py", "-m", weights / FOLDERS["prompt_upsampler"], "-t", "3"
        ),
    }  # fmt: skip


def planted_weights(place: Place, weights: Path, marker: Path) -> None:
    """The embedded models, with the code in one place."""
    shutil.copytree(EMBEDDED, weights / "embedded", ignore=shutil.ignore_patterns("*.webp"))
    for name in ("adetailer", "upscalers", "clip-vit-base-patch32"):
        (weights / name).mkdir()
    if place.part == "class names":
        shutil.copytree(EMBEDDED / "flux" / "tokenizer", weights / FOLDERS[place.part] / "tokenizer")
    place.plant(weights / FOLDERS[place.part], marker)
    for path in (weights / "embedded").iterdir():
        if path.suffix in (".pt", ".pth", ".onnx"):
            shutil.move(path, weights / "adetailer")


def run(name: str, command: str, scratch: Path) -> Run:
    weights, out, marker = scratch / "weights", scratch / "out", scratch / "planted"
    out.mkdir()
    planted_weights(PLACES[name], weights, marker)
    environment = {**os.environ, "FLUX_WEIGHTS_DIR": str(weights), "FLUX_MODEL": "embedded", "PYTHONPATH": str(ROOT)}
    line = [str(word) for word in commands(weights, out)[command]]
    line = [sys.executable, *([] if line[0].endswith(".py") else ["-P", "-m"]), *line]
    begin = time.monotonic()
    try:
        ended = subprocess.run(
            line, cwd=ROOT, env=environment, input=ANSWERS, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        outcome = judged(ended, marker)
    except subprocess.TimeoutExpired:
        outcome = "HANGS"
    return Run(name, command, outcome, round(time.monotonic() - begin, 1))


def judged(ended: subprocess.CompletedProcess[str], marker: Path) -> str:
    """ "done", "refused: LINE", or in capitals what must not be."""
    if marker.exists():
        return "CODE RAN"
    if QUESTION in ended.stdout + ended.stderr:
        return "ASKED"
    if "Traceback (most recent call last)" in ended.stderr:
        return f"TRACEBACK: {ended.stderr.strip().rpartition(chr(10))[2][:200]}"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.returncode:
        return f"refused: {lines[-1][7:]}" if lines else f"ended with {ended.returncode}"
    return "done"


def summary(runs: Sequence[Run]) -> list[Mapping[str, object]]:
    by_command: dict[str, Counter[str]] = {}
    for one in runs:
        by_command.setdefault(one.command, Counter())[one.outcome.partition(":")[0]] += 1
    kinds = sorted({kind for counts in by_command.values() for kind in counts})
    return [
        {"command": command, "places": sum(counts.values()), **{kind: counts[kind] for kind in kinds}}
        for command, counts in by_command.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    known = ("predict", "batch", "doctor", "check", "convert", "language model")
    parser.add_argument("--commands", nargs="*", choices=known, default=known)
    parser.add_argument("--places", nargs="*", default=[""], help="only places whose names hold one of these texts")
    parser.add_argument("--json", type=Path, help="write every run")
    options = parser.parse_args()
    chosen = [name for name in PLACES if any(text in name for text in options.places)]
    runs = []
    for name in chosen:
        for command in options.commands:
            with tempfile.TemporaryDirectory() as scratch:
                runs.append(run(name, command, Path(scratch)))
            last = runs[-1]
            print(f"{last.place}, {last.command}: {last.outcome} ({last.seconds} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in runs], indent=1))
    print(table(summary(runs)))
    return int(any(one.outcome.partition(":")[0].isupper() for one in runs))


if __name__ == "__main__":
    sys.exit(main())
