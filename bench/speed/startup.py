"""From process start to the first picture: ``python -m bench.speed.startup [--runs 5] [--steps 28] [--read-ahead 3]
[--json]``.

Three comparisons of alternating processes:

- ours against a plain diffusers script that writes the same picture, from process start to end; ours once with the
  generate stage alone (no other stage, no warm-up) and once as it is installed;
- where the time goes, phase by phase, with all stages and without the detail pass;
- with ``--read-ahead 3``: a checkpoint of 3 GB that is not in the page cache, read during the imports or after them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backend.core.settings import ROOT

PROMPT = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"
PLAIN = """
import sys, torch
from backend.devices.torchvision_ops import ensure_torchvision_operators
ensure_torchvision_operators()
from diffusers import FluxPipeline
pipeline = FluxPipeline.from_pretrained("weights/embedded/flux", torch_dtype=torch.float32, local_files_only=True,
                                       trust_remote_code=False)
pipeline.set_progress_bar_config(disable=True)
image = pipeline(sys.argv[1], width=256, height=256, num_inference_steps=int(sys.argv[2]), guidance_scale=3.5,
                 max_sequence_length=40,
                 generator=torch.Generator("cpu").manual_seed(0)).images[0]
image.save(sys.argv[3], quality=80)
"""
DRAWING_ONLY = {
    "FLUX_DISABLED_EXTENSIONS": "prompt_upsampler,hires,adetailer,upscale,face_enhance",
    "FLUX_WARM_UP": "false",
}


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    settings = {"FLUX_MODEL": "embedded", "FLUX_DTYPE": "float32", "FLUX_LOG_LEVEL": "WARNING"}
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **settings, **changes}


def times_of(command: Sequence[str], changes: Mapping[str, str]) -> tuple[float, float]:
    """Seconds from the start of the process to its end, and of processor time, which a busy machine changes less."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, env=environment(changes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def our_command(folder: Path, steps: int, *options: str) -> list[str]:
    inputs = ["-i", f"prompt={PROMPT}", "-i", "seed=0", "-i", f"num_inference_steps={steps}"]
    return [sys.executable, "-P", "-m", "modules.cli.predict", *inputs, "-o", str(folder), *options]


def first_picture(folder: Path, steps: int, runs: int) -> dict[str, dict[str, float]]:
    """By way: medians in seconds and seconds of processor time, and the medians of their ratios to the plain script,
    pair by pair."""
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "plain script": lambda: times_of(
            [sys.executable, "-c", PLAIN, PROMPT, str(steps), str(folder / "plain.webp")], {}
        ),
        "ours, drawing alone": lambda: times_of(our_command(folder, steps), DRAWING_ONLY),
        "ours, every stage": lambda: times_of(our_command(folder, steps), {}),
    }
    for run in ways.values():
        run()  # files come into the page cache
    turns = [{name: run() for name, run in ways.items()} for _ in range(runs)]
    found: dict[str, dict[str, float]] = {}
    for name in ways:
        found[name] = {}
        for index, kind in enumerate(("seconds", "processor")):
            found[name][kind] = statistics.median(turn[name][index] for turn in turns)
            found[name][f"{kind}_ratio"] = statistics.median(
                turn[name][index] / turn["plain script"][index] for turn in turns
            )
    return found


def phases(folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """Median seconds of every span of the set-up, with all stages and without the detail pass."""
    file, found = folder / "startup.json", {}
    for label, disabled in (("all stages", ""), ("without adetailer", "adetailer")):
        measured: list[dict[str, float]] = []
        for _ in range(runs):
            times_of(our_command(folder, 1, "--startup", str(file)), {"FLUX_DISABLED_EXTENSIONS": disabled})
            spans = [event for event in json.loads(file.read_text())["traceEvents"] if event["ph"] == "X"]
            measured.append({span["args"]["path"]: span["dur"] / 1e6 for span in spans})
        found[label] = {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        found[label]["total"] = sum(seconds for name, seconds in found[label].items() if "." not in name)
    return found


def load_checkpoint(folder: Path, ahead: bool) -> float:
    """Seconds from here to loaded weights: imports, with the files being read meanwhile or not, then the loading."""
    from backend.checkpoints.page_cache import read_ahead

    begin = time.perf_counter()
    if ahead:
        threading.Thread(target=read_ahead, args=(sorted(folder.glob("*.safetensors")),), daemon=True).start()
    import torch

    from backend.devices.torchvision_ops import ensure_torchvision_operators

    ensure_torchvision_operators()
    import transformers  # noqa: F401
    from diffusers import FluxPipeline, FluxTransformer2DModel  # noqa: F401

    from backend.checkpoints.loader import load_diffusers_module

    load_diffusers_module(FluxTransformer2DModel, folder, torch.bfloat16)
    return time.perf_counter() - begin


def read_ahead_gain(gigabytes: float, runs: int) -> dict[str, float]:
    """Median seconds with a cold page cache, with and without reading ahead, and the median of the ratios."""
    from backend.devices.torchvision_ops import ensure_torchvision_operators

    ensure_torchvision_operators()
    from bench.speed.loading import drop_from_cache, write_checkpoint

    turns: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=ROOT / "build" if (ROOT / "build").is_dir() else None) as name:
        folder = Path(name)
        size = write_checkpoint(folder, gigabytes * 1e9)

        def loaded(way: str) -> float:
            drop_from_cache(folder)
            command = [sys.executable, "-m", "bench.speed.startup", "--load", way, name]
            return float(
                subprocess.run(
                    command, cwd=ROOT, env=environment({}), capture_output=True, text=True, check=True
                ).stdout
            )

        loaded("ahead")
        for turn in range(runs):
            ways = ("ahead", "after") if turn % 2 else ("after", "ahead")
            times = {way: loaded(way) for way in ways}
            turns.append((times["ahead"], times["after"]))
    ahead, after = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "gigabytes": size / 1e9,
        "ahead_seconds": ahead,
        "after_seconds": after,
        "ratio": statistics.median(a / b for a, b in turns),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument(
        "--read-ahead", type=float, default=0, metavar="GB", help="also load a checkpoint of this size from the disk"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", nargs=2, metavar=("ahead|after", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(load_checkpoint(Path(arguments.load[1]), arguments.load[0] == "ahead"))
        return
    with tempfile.TemporaryDirectory() as name:
        first = first_picture(Path(name), arguments.steps, arguments.runs)
        spans = phases(Path(name), arguments.runs)
    gain = read_ahead_gain(arguments.read_ahead, arguments.runs) if arguments.read_ahead else None
    if arguments.json:
        print(json.dumps({"first_picture": first, "phases": spans, "read_ahead": gain}, indent=2))
        return
    print(
        f"first picture, {arguments.steps} steps, median of {arguments.runs}\n\n| | seconds | ratio | processor "
        "seconds | ratio |\n|---|---|---|---|---|"
    )
    for name, row in first.items():
        print(
            f"| {name} | "
            + "{seconds:.2f} | {seconds_ratio:.2f} | {processor:.2f} | {processor_ratio:.2f} |".format(**row)
        )
    print()
    print("| phase | all stages | without adetailer |\n|---|---|---|")
    for span, seconds in spans["all stages"].items():
        print(f"| {span} | {seconds:.2f} | {spans['without adetailer'].get(span, 0):.2f} |")
    if gain:
        print(
            "{gigabytes:.1f} GB from the disk: {ahead_seconds:.2f} s read during the imports, "
            "{after_seconds:.2f} s after them, ratio {ratio:.2f}".format(**gain)
        )


if __name__ == "__main__":
    main()
