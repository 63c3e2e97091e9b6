"""Kills the real processes with SIGKILL at random moments and checks what is left: ``python -m bench.robustness.kills
[--kills 30] [--seed 0] [--only server worker command batch]``.

- command: ``scripts/predict`` is killed and run again. Its folder then holds whole pictures, and nothing else.
- batch: ``scripts/batch`` is killed and resumed. Every row is there once, with the pictures of a run without a kill.
- server: ``scripts/serve`` is killed and started again on the same port. Its other processes end by themselves.
- worker: the process that computes is killed, most often in a prediction. The server answers the next one without help.

After each, no process of the trial is left, and nothing in its temporary directory.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from backend.core.settings import ROOT

PATIENCE = 300.0
"""Seconds for whatever must happen by itself, on a machine that is busy with something else."""
MARK = "KILLS_TRIAL"
"""Environment variable by which the processes of a trial are found."""
QUICK = {"num_inference_steps": 2, "adetailer": False, "scale": 1, "output_format": "png"}
ROWS = 8


class Broken(Exception):
    """A check that failed."""


class Trial:
    """A folder with a temporary directory for the processes of a trial, which are found by their environment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        self.mark = f"{MARK}={secrets.token_hex(8)}"

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """A process in a session of its own; what it prints goes to ``log``."""
        name, value = self.mark.split("=")
        environment = {**os.environ, "TMPDIR": str(self.temporary), "FLUX_DTYPE": "float32", name: value}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                list(map(str, command)), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, *command: str | Path, codes: Sequence[int] = (0,)) -> float:
        """Runs a command to its end; its seconds."""
        begin = time.monotonic()
        code = self.start(*command).wait(PATIENCE)
        require(code in codes, f"{Path(command[0]).name} ended with {code}: see {self.folder / 'log'}")
        return time.monotonic() - begin

    def processes(self) -> dict[int, int]:
        """Resident kilobytes of every living process of the trial, by its id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = int((folder / "statm").read_text().split()[1])
            except OSError:
                continue  # it has ended
        return found

    def require_rest(self) -> None:
        """Raises :class:`Broken` when processes, or files of a process, are still there."""
        wait_until(lambda: not self.processes(), f"processes are left: {self.processes()}")
        left = [str(path) for path in self.temporary.rglob("*") if not path.is_dir()]
        require(not left, f"temporary files are left: {left}")


def require(condition: object, message: str) -> None:
    if not condition:
        raise Broken(message)


def wait_until(condition: Callable[[], object], message: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        require(time.monotonic() < deadline, message)
        time.sleep(0.1)


def pictures(folder: Path) -> dict[str, bytes]:
    """The pixels of every file. Raises :class:`Broken` for a file that is no whole picture."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".png" and not path.name.startswith("."):
            try:
                with Image.open(path) as image:
                    found[path.name] = image.tobytes()
            except (OSError, SyntaxError) as error:
                raise Broken(f"{path.name} is no whole picture: {error}") from error
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed(process: subprocess.Popen[bytes], after: float) -> str:
    """Kills a process alone, not its children, ``after`` so many seconds; says whether it was still running."""
    try:
        process.wait(after)
        return "had ended"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"after {after:.1f} s"


class Command:
    """Two pictures by ``scripts/predict``."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.number = trial, 0
        self.options = [option for name, value in QUICK.items() for option in ("-i", f"{name}={value}")]
        self.seconds = trial.finish(*self._command("whole"))
        self.expected = list(pictures(trial.folder / "whole").values())

    def kill(self, chance: random.Random) -> str:
        self.number += 1
        folder = self.trial.folder / f"command-{self.number}"
        how = killed(self.trial.start(*self._command(folder.name)), chance.uniform(0, self.seconds))
        if folder.exists():
            require(list(pictures(folder).values()) in ([], self.expected), "the killed command left half of its files")
        self.trial.finish(*self._command(folder.name))
        there = pictures(folder)
        require(names(folder) == there.keys(), f"the folder holds {names(folder) - there.keys()} too")
        require(list(there.values())[-2:] == self.expected and len(there) in (2, 4), f"other pictures: {list(there)}")
        return how

    def _command(self, folder: str) -> list[str | Path]:
        inputs = ["-i", "prompt=a man with black hair", "-i", "seed=1", "-i", "num_outputs=2"]
        return [ROOT / "scripts" / "predict", *inputs, *self.options, "-o", self.trial.folder / folder]


class Batch:
    """A table by ``scripts/batch``."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.number, self.table = trial, 0, trial.folder / "table.csv"
        with self.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "prompt", "megapixels", *QUICK])
            writer.writeheader()
            for row in range(ROWS):
                writer.writerow({"id": f"row-{row}", "prompt": f"a woman, number {row}", "megapixels": "0.25", **QUICK})
        self.seconds = trial.finish(*self._command("whole-table"))
        self.expected = pictures(trial.folder / "whole-table")
        self.names = names(trial.folder / "whole-table")

    def kill(self, chance: random.Random) -> str:
        self.number += 1
        folder = self.trial.folder / f"batch-{self.number}"
        how = killed(self.trial.start(*self._command(folder.name)), chance.uniform(0, self.seconds))
        done = pictures(folder).keys() if folder.exists() else set()
        before = {name: (folder / name).stat().st_mtime_ns for name in done}
        self.trial.finish(*self._command(folder.name), "--resume")
        require(pictures(folder) == self.expected, "the resumed table has other pictures")
        require(names(folder) == self.names, f"it holds {names(folder)}")
        rows = [json.loads(line)["id"] for line in (folder / "manifest.jsonl").read_text().splitlines()]
        require(sorted(rows) == sorted({f"row-{row}" for row in range(ROWS)}), f"the manifest has {rows}")
        again = [name for name, moment in before.items() if (folder / name).stat().st_mtime_ns != moment]
        require(len(again) <= 1, f"made twice: {again}")  # one, whose line was not yet written
        return f"{how}, {len(before)} of {ROWS} rows made"

    def _command(self, folder: str) -> list[str | Path]:
        return [ROOT / "scripts" / "batch", self.table, "-o", self.trial.folder / folder]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """``scripts/serve``, which answers with the pictures of ``expected``."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.port = trial, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        begin = time.monotonic()
        with self.running():
            self.seconds = time.monotonic() - begin
            begin = time.monotonic()
            self.expected = self.prediction()
            self.prediction_seconds = time.monotonic() - begin

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """A server that is ready. It is stopped with SIGTERM when the block ends, and must then leave nothing."""
        process = self.start()
        try:
            wait_until(lambda: self.is_ready(process), "the server is not ready")
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)
        self.trial.require_rest()

    def start(self) -> subprocess.Popen[bytes]:
        return self.trial.start(ROOT / "scripts" / "serve", "--port", str(self.port))

    def is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        require(process.poll() is None, f"the server ended: see {self.trial.folder / 'log'}")
        try:
            return bool(requests.get(f"{self.url}/health-check", timeout=10).json()["status"] == "READY")
        except (requests.RequestException, ValueError):
            return False

    def prediction(self) -> list[bytes]:
        """The pixels of a prediction's pictures. Raises :class:`Broken` when it fails."""
        inputs: dict[str, Any] = {"prompt": "a man with black hair", "seed": 1, **QUICK}
        answer: dict[str, Any] = requests.post(
            f"{self.url}/predictions", json={"input": inputs}, timeout=PATIENCE
        ).json()
        require(answer.get("status") == "succeeded", f"the prediction failed: {answer.get('error', answer)}")
        files = [base64.b64decode(url.partition(",")[2]) for url in answer["output"]]
        return [Image.open(io.BytesIO(file)).tobytes() for file in files]

    def kill(self, chance: random.Random) -> str:
        """At a random moment of its start or of a prediction."""
        process = self.start()
        begin = time.monotonic()
        moment = chance.uniform(0, self.seconds + self.prediction_seconds)
        with ThreadPoolExecutor(1) as client:
            while time.monotonic() - begin < moment and not self.is_ready(process):
                time.sleep(0.1)
            client.submit(self.prediction)  # refused, cut off or answered; what counts is the next one
            killed(process, max(0.0, moment - (time.monotonic() - begin)))
        wait_until(
            lambda: not self.trial.processes(), f"the killed server's processes live on: {self.trial.processes()}"
        )
        with self.running():
            require(self.prediction() == self.expected, "the next server draws other pictures")
        return f"after {moment:.1f} s"


class Worker:
    """The process of a server that computes."""

    def __init__(self, trial: Trial) -> None:
        self.server = Server(trial)

    def kill(self, chance: random.Random) -> str:
        """In a prediction, or a little after it."""
        server = self.server
        moment = chance.uniform(0, 1.2 * server.prediction_seconds)
        with server.running() as process:
            with ThreadPoolExecutor(1) as client:
                client.submit(server.prediction)
                time.sleep(moment)
                memory = server.trial.processes()
                os.kill(max(memory, key=memory.__getitem__), signal.SIGKILL)
            time.sleep(0.5)
            wait_until(lambda: server.is_ready(process), "the server does not come back")
            require(server.prediction() == server.expected, "the next worker draws other pictures")
        return f"{moment:.1f} s into a prediction"


TARGETS: dict[str, type[Command | Batch | Server | Worker]] = {
    "command": Command,
    "batch": Batch,
    "server": Server,
    "worker": Worker,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="in all (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args(arguments)
    chance, failures = random.Random(options.seed), 0
    for index, name in enumerate(options.only):
        kills = len(range(index, options.kills, len(options.only)))
        with tempfile.TemporaryDirectory(prefix=f"kills-{name}-") as folder:
            trial = Trial(Path(folder))
            target = TARGETS[name](trial)
            for number in range(1, kills + 1):
                begin = time.monotonic()
                try:
                    how = target.kill(chance)
                    trial.require_rest()
                except Broken as error:
                    failures += 1
                    how = f"FAILED: {error}"
                print(f"{name} {number}/{kills}: {how}; in order after {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{options.kills - failures} of {options.kills} kills left everything in order")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
