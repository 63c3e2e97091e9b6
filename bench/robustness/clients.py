"""Several clients of one server: ``python -m bench.robustness.clients [--plain] [--row 200] [--each 10] [--mixed
200]``.

Starts a server on the embedded models (``--plain``: Cog's server alone, as in the image) and sends it a row of requests
by one client, then ``--each`` by each of four at once, then mixed ones: images, wrong inputs, and cancels of waiting
and running predictions. Every request has to be answered, in order of arrival, and nothing may be left in the temporary
folders. With ``--plain`` also one id that makes Cog's server lose a place for good.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from backend.api.openapi import write_schema
from backend.core.settings import ROOT

SMALL: Mapping[str, Any] = {
    "prompt": "a portrait of a man",
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "adetailer": False,
    "scale": 1,
}
COG_FOLDER = Path("/tmp/coglet/predictions")
PREFIX = f"clients-{os.getpid()}-"
"""Of the ids, because all servers of a machine share that folder."""
SUCCEEDED = frozenset({"200 succeeded"})
CLIENTS = 4
SECONDS = 600.0
REST_SECONDS = 15.0
"""After which nothing may be left of the last requests."""


@dataclass
class Trial:
    """What one server answered, and what was not as it has to be."""

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)
    cancel_seconds: list[float] = field(default_factory=list)
    queue_seconds: list[float] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    """Ids in the order of the answers."""
    faults: list[str] = field(default_factory=list)

    def send(self, name: str, inputs: Mapping[str, Any], allowed: frozenset[str] = SUCCEEDED) -> None:
        prediction = f"{PREFIX}{name}"
        response = requests.put(f"{self.url}/predictions/{prediction}", json={"input": inputs}, timeout=SECONDS)
        answer = response.json()
        outcome = f"{response.status_code} {answer.get('status', '')}".strip()
        self.outcomes[outcome] += 1
        self.ended.append(name)
        if outcome == "200 succeeded":
            self.queue_seconds.append(answer["metrics"]["queue_seconds"])
        if outcome not in allowed:
            self.faults.append(f"{prediction}: {outcome}: {answer.get('error') or answer.get('detail')}")

    def timed(self, name: str, part: Callable[[], None]) -> None:
        """Prints how long a part took and what was answered."""
        self.outcomes.clear()
        begin = time.monotonic()
        part()
        print(f"{name}: {time.monotonic() - begin:.1f} s, {json.dumps(self.outcomes)}", flush=True)

    def row(self, count: int) -> None:
        """One client, one request after the other."""
        for number in range(count):
            self.send(f"row-{number}", SMALL)

    def at_once(self, each: int) -> None:
        """Four clients; an answer may overtake none that was asked for a request earlier."""
        begun: list[str] = []

        def client(number: int) -> None:
            for turn in range(each):
                begun.append(f"client-{number}-{turn}")
                self.send(begun[-1], SMALL)

        self.ended.clear()
        _together([threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)])
        moved = max(abs(begun.index(prediction) - place) for place, prediction in enumerate(self.ended))
        if moved > 1:
            self.faults.append(f"an answer came {moved} places from its order")

    def mixed(self, count: int, seed: int) -> None:
        """Four clients; a tenth each has an image, is wrong, or is canceled at some moment of its first second."""

        def client(number: int) -> None:
            rng = random.Random(f"{seed}-{number}")
            for turn in range(count // CLIENTS):
                prediction = f"mixed-{number}-{turn}"
                kind = rng.choices(("plain", "image", "wrong", "canceled"), (7, 1, 1, 1))[0]
                inputs = {**SMALL, "seed": turn, "num_inference_steps": rng.choice((1, 2))}
                if kind == "image":
                    self.send(prediction, {**inputs, "image": _picture(rng)})
                elif kind == "wrong":
                    self.send(prediction, {**inputs, "prompt": " "}, frozenset({"200 failed", "422"}))
                elif kind == "canceled":
                    self._cancel(prediction, {**inputs, "num_inference_steps": 20}, rng.random())
                else:
                    self.send(prediction, inputs)

        _together([threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)])

    def _cancel(self, prediction: str, inputs: Mapping[str, Any], after: float) -> None:
        allowed = frozenset({"200 canceled", "200 succeeded"})  # it may have finished before
        sent = threading.Thread(target=self.send, args=(prediction, inputs, allowed))
        sent.start()
        time.sleep(after)
        begin = time.monotonic()
        requests.post(f"{self.url}/predictions/{PREFIX}{prediction}/cancel", timeout=SECONDS)
        sent.join()
        self.cancel_seconds.append(time.monotonic() - begin)

    def lost_place(self) -> None:
        """Cog's server cannot make a folder of that name, and never gives the place free again."""
        requests.post(f"{self.url}/predictions", json={"id": "i" * 300, "input": SMALL}, timeout=SECONDS)
        for number in range(5):
            self.send(f"after-{number}", SMALL)


def _together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # else the server takes the first of each in any order
    for thread in threads:
        thread.join()


def _picture(rng: random.Random) -> str:
    content = io.BytesIO()
    Image.new("RGB", (256, 256), (rng.randrange(256), 0, 0)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@contextmanager
def own_server(plain: bool, temporary: Path) -> Iterator[str]:
    """The address of a server that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "COG_MAX_CONCURRENCY": "16",
        "FLUX_MODEL": "embedded",
    }
    write_schema()
    alone = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    command = alone if plain else [str(ROOT / "scripts" / "serve"), "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)
    try:
        while (status := _status(f"http://127.0.0.1:{port}")) != "READY":
            if server.poll() is not None or status not in ("", "STARTING"):
                sys.exit(f"the server does not start: {status}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _status(url: str) -> str:
    try:
        return str(requests.get(f"{url}/health-check", timeout=SECONDS).json()["status"])
    except requests.ConnectionError:
        return ""


def files(temporary: Path) -> set[Path]:
    """All files and folders that requests may leave."""
    return {*temporary.rglob("*"), *COG_FOLDER.glob(f"{PREFIX}*")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true", help="Cog's server alone")
    parser.add_argument("--row", type=int, default=200)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--mixed", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clients-") as folder, own_server(options.plain, Path(folder)) as url:
        trial, at_rest = Trial(url), files(Path(folder))
        trial.timed("row", partial(trial.row, options.row))
        trial.timed("at once", partial(trial.at_once, options.each))
        trial.timed("mixed", partial(trial.mixed, options.mixed, options.seed))
        if options.plain:
            trial.timed("lost place", trial.lost_place)
        deadline = time.monotonic() + REST_SECONDS
        while (left := files(Path(folder)) - at_rest) and time.monotonic() < deadline:
            time.sleep(0.1)
        trial.faults += [f"left behind: {path}" for path in sorted(left)]
    for what, seconds in (("answered after a cancel", trial.cancel_seconds), ("waited", trial.queue_seconds)):
        print(f"{what}: {statistics.median(seconds):.3f} s, at most {max(seconds):.3f} s")
    print(f"files left: {len(left)}")
    for fault in trial.faults:
        print(f"fault: {fault}")
    return bool(trial.faults)


if __name__ == "__main__":
    sys.exit(main())
