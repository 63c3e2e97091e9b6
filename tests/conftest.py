"""What several test files share: the real package, one real server and one real run of the command, each started once."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # every worker its own cores, before torch counts them: threads of two workers on one core wait for each other at every operation
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])] or cores)

import pytest
import requests
from hypothesis import settings

from backend.settings import ROOT, Settings
from backend.torchvision_operators import ensure_torchvision_operators

ensure_torchvision_operators()  # before any test module imports diffusers

from modules.startup import Service, start  # noqa: E402

# the same examples on every machine: whoever changes something else shall not be stopped by a draw. New ones are drawn by
# `python -m pytest --hypothesis-profile=thorough`, twenty times as many
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=20 * settings.default.max_examples)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What was imported stays: Python's collector need not look through it again and again."""
    gc.freeze()


PROMPT = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"

PICTURE: dict[str, Any] = {
    "prompt": "a portrait of a smiling woman with long red hair, blue shirt, green background",
    "num_inference_steps": 4,
    "seed": 7,
    "output_format": "png",
}
"""Inputs of a quick prediction that runs every stage."""

START_SECONDS = 600.0
PREDICTION_SECONDS = 300.0
"""Both are for a machine that is busy with something else; on an idle one with 2 cores neither takes 30."""


@dataclass
class Server:
    """A running server. ``predict`` waits for its turn, as a client does that has no queue before it."""

    url: str
    temporary: Path
    log: Path
    ids: list[str] = field(default_factory=list)
    at_rest: frozenset[Path] = frozenset()
    """The temporary files that set-up leaves for the server's lifetime."""

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.url}/health-check", timeout=10).json()
        return answer

    def wait_until_ready(self, seconds: float = PREDICTION_SECONDS) -> float:
        """Seconds until the server takes the next prediction."""
        begin = time.monotonic()
        while (status := self.health()["status"]) != "READY":
            assert status in ("STARTING", "BUSY"), f"the server is {status}: {self.log.read_text()}"
            assert time.monotonic() - begin < seconds, f"the server is still {status}"
            time.sleep(0.02)
        return time.monotonic() - begin

    def files(self) -> frozenset[Path]:
        """The temporary files of the server, and those that coglet keeps of the predictions asked for here, wherever TMPDIR is."""
        folders = [self.temporary, *(Path("/tmp/coglet/predictions") / name for name in self.ids)]
        return frozenset(path for folder in folders for path in folder.rglob("*") if path.is_file())

    def new_id(self) -> str:
        self.ids.append(f"test-{uuid.uuid4().hex}")
        return self.ids[-1]

    def predict(self, inputs: dict[str, Any], prediction: str = "") -> requests.Response:
        self.wait_until_ready()
        return requests.put(f"{self.url}/predictions/{prediction or self.new_id()}", json={"input": inputs}, timeout=PREDICTION_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health-check", timeout=10).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _ultralytics_is_careful(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Before whichever test is the first to import it."""
    from modules.adetailer.detection import offline_ultralytics

    offline_ultralytics(tmp_path_factory.mktemp("ultralytics"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port, folder = _free_port(), tmp_path_factory.mktemp("server")
    temporary, log = folder / "tmp", folder / "log"
    temporary.mkdir()
    with log.open("w") as output:
        environment = {**os.environ, "TMPDIR": str(temporary), "FLUX_DTYPE": "float32"}  # as ``service``
        process = subprocess.Popen([ROOT / "scripts" / "serve", "--port", str(port)], cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        running = Server(f"http://127.0.0.1:{port}", temporary, log)
        begin = time.monotonic()
        while not _answers(running.url):
            assert process.poll() is None, f"the server ended: {log.read_text()}"
            assert time.monotonic() - begin < START_SECONDS, f"the server does not answer: {log.read_text()}"
            time.sleep(0.1)
        running.wait_until_ready(START_SECONDS)
        running.at_rest = running.files()
        yield running
    finally:
        process.terminate()
        process.wait(30)
    deadline = time.monotonic() + 30
    while running.files() and time.monotonic() < deadline:  # its worker process ends a little later
        time.sleep(0.1)
    assert not running.files(), "the server leaves files behind when it ends"


@dataclass(frozen=True)
class Drawn:
    """What one run of the command left behind."""

    process: subprocess.CompletedProcess[str]
    folder: Path
    temporary: Path
    seconds: float


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """``scripts/predict`` with the inputs of ``PICTURE``, a timeline, debug images and JSON, from a folder of its own."""
    folder, temporary = tmp_path_factory.mktemp("command"), tmp_path_factory.mktemp("tmp")
    inputs = [option for name, value in PICTURE.items() for option in ("-i", f"{name}={value}")]
    begin = time.monotonic()
    process = subprocess.run(
        [ROOT / "scripts" / "predict", *inputs, "-o", "pictures", "--timeline", "timeline.png", "--debug-images", "found", "--json"],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "FLUX_DTYPE": "float32"},
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    return Drawn(process, folder, temporary, time.monotonic() - begin)


@pytest.fixture(scope="session")
def service() -> Service:
    """The package on its embedded models, in this process; in float32 on every machine, so that pictures can be compared to a 255th."""
    return start(replace(Settings(), model="embedded", dtype="float32"))
