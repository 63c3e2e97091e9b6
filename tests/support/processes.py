"""The real server and the real command, as other processes."""

from __future__ import annotations

import socket
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

START_SECONDS = 600.0
PREDICTION_SECONDS = 300.0
"""Both are for a machine that is busy with something else; on an idle one with 2 cores neither takes 30."""


@dataclass
class Server:
    """A running server."""

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
        """The temporary files of the server, and those that coglet keeps of the predictions asked for here, wherever
        TMPDIR is."""
        folders = [self.temporary, *(Path("/tmp/coglet/predictions") / name for name in self.ids)]
        return frozenset(path for folder in folders for path in folder.rglob("*") if path.is_file())

    def comes_to_rest(self, seconds: float = 10.0) -> bool:
        """Whether no temporary files are left soon after the last answer."""
        deadline = time.monotonic() + seconds
        while (files := self.files()) != self.at_rest and time.monotonic() < deadline:
            time.sleep(0.05)
        return files == self.at_rest

    def new_id(self) -> str:
        self.ids.append(f"test-{uuid.uuid4().hex}")
        return self.ids[-1]

    def predict(self, inputs: dict[str, Any], prediction: str = "") -> requests.Response:
        self.wait_until_ready()
        return requests.put(
            f"{self.url}/predictions/{prediction or self.new_id()}", json={"input": inputs}, timeout=PREDICTION_SECONDS
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health-check", timeout=10).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


@dataclass(frozen=True)
class Drawn:
    """What one run of the command left behind."""

    process: subprocess.CompletedProcess[str]
    folder: Path
    temporary: Path
    seconds: float
