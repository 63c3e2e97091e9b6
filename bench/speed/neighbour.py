"""What a busy process on one core costs a prediction: ``python -m bench.speed.neighbour [--counts 300000 10000 0]
[--runs 7] [--json]``.

Waiting OpenMP threads ask for work ``GOMP_SPINCOUNT`` times before they sleep: 300,000 by default, and
``modules/app/service.py`` sets another number. Each number is tried on the idle machine and beside a process that keeps
the first core busy, alternating. Seconds are medians of warm predictions of 10 steps with all stages and new prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from backend.core.settings import ROOT, Settings
from bench.support.markdown import table

ROUNDS = 2
"""Processes of every kind; their predictions are taken together."""


def predictions(runs: int) -> list[float]:
    """Seconds of so many warm predictions, in this process."""
    from modules.app.service import start

    service = start(replace(Settings(), model="embedded", log_level="ERROR"))
    seconds = []
    for number in range(runs + 1):
        begin = time.perf_counter()
        inputs = {
            "prompt": f"a smiling woman with long red hair, number {number}",
            "seed": number,
            "num_inference_steps": 10,
        }
        service.predict(inputs, lambda name, value: None)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def beside(busy: bool, count: int, runs: int) -> list[float]:
    """Those of a process of its own, with the first core busy or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": str(count)}
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    if neighbour:
        os.sched_setaffinity(neighbour.pid, {min(os.sched_getaffinity(0))})
    try:
        command = [sys.executable, "-P", "-m", "bench.speed.neighbour", "--work", "--runs", str(runs)]
        output = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seconds: list[float] = json.loads(output.splitlines()[-1])
        return seconds
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[300_000, 10_000, 0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(predictions(arguments.runs)))
        return
    found: dict[tuple[int, bool], list[float]] = {
        (count, busy): [] for count in arguments.counts for busy in (False, True)
    }
    for _ in range(ROUNDS):
        for (count, busy), seconds in found.items():
            seconds += beside(busy, count, arguments.runs)
    rows = [
        {
            "spin_count": count,
            "idle": round(statistics.median(found[count, False]), 2),
            "busy": round(statistics.median(found[count, True]), 2),
        }
        | {"busy_worst": round(max(found[count, True]), 2)}
        for count in arguments.counts
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(table(rows))


if __name__ == "__main__":
    main()
