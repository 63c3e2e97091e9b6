"""The gateway and Cog's real server with a predictor that starts in a second: what happens when something dies, hangs
or is told to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from support.background import serve_in_background
from support.data_urls import png
from support.processes import free_port

from backend.core.settings import ROOT

SLOTS = 4
"""Of the toy."""


@dataclass
class Toy:
    """A running toy gateway."""

    process: subprocess.Popen[str]
    url: str
    temporary: Path
    said: list[str] = field(default_factory=list)
    """The lines on standard error, complete when the process has ended."""

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.url}/health-check", timeout=5).json()
        return answer

    def until(self, condition: Any, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)

    def until_ready(self, restarts: int = 0) -> None:
        self.until(lambda: (health := self.health())["status"] == "READY" and health["restarts"] == restarts)

    def predict(self, seconds: float = 0.0, prompt: str = "wait", **body: Any) -> requests.Response:
        inputs = {"prompt": prompt, "seconds": seconds}
        return requests.post(f"{self.url}/predictions", json={"input": inputs, **body}, timeout=60)

    def look(self, images: list[str]) -> requests.Response:
        inputs = {"prompt": "look", "images": images}
        return requests.post(f"{self.url}/predictions", json={"input": inputs}, timeout=60)

    def begin(self, seconds: float, name: str, **body: Any) -> None:
        """An asynchronous prediction."""
        answer = requests.put(
            f"{self.url}/predictions/{name}",
            json={"input": {"prompt": "wait", "seconds": seconds}, **body},
            headers={"Prefer": "respond-async"},
            timeout=10,
        )
        assert answer.status_code == 202 and answer.json()["id"] == name

    def cancel(self, name: str) -> requests.Response:
        return requests.post(f"{self.url}/predictions/{name}/cancel", timeout=5)

    def processes(self) -> list[int]:
        """The process ids of Cog's server and its worker."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if f"TMPDIR={self.temporary}/".encode() in read(path)
        ]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextmanager
def toy(folder: Path, stall: float = 60.0, grace: float = 8.0, **environment: str) -> Iterator[Toy]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "support.toy_gateway", str(port), str(stall), str(grace)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TMPDIR": str(folder), **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    running = Toy(process, f"http://127.0.0.1:{port}", folder)
    reader = threading.Thread(target=lambda: running.said.extend(map(str.strip, process.stderr or [])))
    reader.start()
    try:
        running.until(lambda: process.poll() is not None or answers(running.url))
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join(30)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health-check", timeout=5).ok
    except requests.ConnectionError:
        return False


@dataclass
class Receiver:
    """Takes webhooks, after ``delay`` seconds each."""

    url: str
    delay: float = 0.0
    received: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(found.delay)
            found.received.append(json.loads(content))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
        thread = serve_in_background(server)
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    with toy(tmp_path_factory.mktemp("toy")) as running:
        running.until_ready()
        yield running


def test_more_than_it_has_slots_for_are_refused_and_told_when_to_come_again(shared: Toy) -> None:
    for number in range(SLOTS):
        shared.begin(50.0, f"full-{number}")
    answer = shared.predict()
    assert answer.status_code == 409 and int(answer.headers["Retry-After"]) >= 1
    assert (shared.health()["status"], shared.health()["predictions"]["running"]) == ("BUSY", SLOTS)

    for number in range(SLOTS):
        shared.cancel(f"full-{number}")
    shared.until(lambda: shared.health()["predictions"]["running"] == 0)
    assert shared.predict().json()["status"] == "succeeded"


def test_a_client_that_waits_for_every_answer_is_never_turned_away(shared: Toy) -> None:
    assert {shared.predict().status_code for _ in range(40)} == {200}


def test_clients_at_once_are_all_served(shared: Toy) -> None:
    with ThreadPoolExecutor(SLOTS) as clients:
        answers = list(clients.map(lambda _: [shared.predict().status_code for _ in range(10)], range(SLOTS)))
    assert answers == [[200] * 10] * SLOTS


def test_the_pictures_of_a_list_arrive_in_order_and_are_deleted(shared: Toy) -> None:
    pictures = [png(Image.new("RGB", (side, 8))) for side in (30, 10, 20)]
    answer = shared.look(pictures)
    assert "seen: [(30, 8), (10, 8), (20, 8)]" in answer.json()["error"]
    assert "seen: []" in shared.look([]).json()["error"]
    shared.until(lambda: not [file for file in shared.temporary.rglob("*") if file.is_file() and is_picture(file)])


def is_picture(file: Path) -> bool:
    return read(file).startswith(b"\x89PNG")


def test_a_waiting_prediction_is_cancelled_at_once(shared: Toy, receiver: Receiver) -> None:
    shared.begin(50.0, "first")
    shared.begin(50.0, "waiting", webhook=receiver.url, webhook_events_filter=["completed"])
    begin = time.monotonic()
    assert shared.cancel("waiting").status_code == 200
    shared.until(lambda: receiver.received)
    assert receiver.received[0]["status"] == "canceled" and time.monotonic() - begin < 0.9
    assert shared.cancel("nobody").status_code == 404
    shared.cancel("first")
    shared.until(lambda: shared.health()["predictions"]["running"] == 0)


def test_no_cancel_is_lost_however_early_it_comes(shared: Toy, receiver: Receiver) -> None:
    """Cog's own are lost or end a prediction as failed when they come while it begins."""
    for number in range(25):
        shared.begin(50.0, f"early-{number}", webhook=receiver.url, webhook_events_filter=["completed"])
        time.sleep(number / 1000)
        assert shared.cancel(f"early-{number}").status_code == 200
        shared.until(lambda: shared.health()["predictions"]["running"] == 0, 5)
    shared.until(lambda: len(receiver.received) == 25)
    assert {payload["status"] for payload in receiver.received} == {"canceled"}
    assert shared.predict().json()["status"] == "succeeded"


def test_a_client_that_goes_away_cancels_its_prediction(shared: Toy) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{shared.url}/predictions", json={"input": {"prompt": "wait", "seconds": 50}}, timeout=(5, 0.3))
    shared.until(lambda: shared.health()["predictions"]["running"] == 0, 5)


@pytest.mark.parametrize("prefer", ["Respond-Async", "wait=60, respond-async", "respond-async; x=1"])
def test_a_client_that_prefers_not_to_wait_does_not(shared: Toy, prefer: str) -> None:
    answer = requests.post(
        f"{shared.url}/predictions",
        json={"id": "soon", "input": {"prompt": "wait", "seconds": 50}},
        headers={"Prefer": prefer},
        timeout=10,
    )
    assert answer.status_code == 202
    shared.cancel("soon")
    shared.until(lambda: shared.health()["predictions"]["running"] == 0)


def test_a_put_that_is_sent_again_shows_the_state_and_begins_nothing(shared: Toy) -> None:
    shared.begin(50.0, "again")
    answer = requests.put(
        f"{shared.url}/predictions/again", json={"input": {"prompt": "wait", "seconds": 50}}, timeout=5
    )
    assert (answer.status_code, answer.json()["status"]) == (202, "processing")
    assert shared.predict(id="again").status_code == 409
    shared.cancel("again")
    shared.until(lambda: shared.health()["predictions"]["running"] == 0)


def test_webhooks_arrive_in_order_and_the_last_one_says_how_it_ended(shared: Toy, receiver: Receiver) -> None:
    shared.begin(0.2, "hooked", webhook=receiver.url)
    shared.until(lambda: len(receiver.received) == 2)
    assert [payload["status"] for payload in receiver.received] == ["processing", "succeeded"]
    assert {payload["id"] for payload in receiver.received} == {"hooked"}


def test_a_worker_that_dies_fails_its_prediction_and_is_started_again(shared: Toy, receiver: Receiver) -> None:
    before = shared.health()["restarts"]
    answer = shared.predict(prompt="die", webhook=receiver.url, webhook_events_filter=["completed"])
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert answer.json()["status"] == "failed" and "send the request again" in answer.json()["error"]
    assert shared.predict().status_code == 503
    shared.until_ready(before + 1)
    assert shared.predict().json()["status"] == "succeeded"
    assert [payload["status"] for payload in receiver.received] == ["failed"]


def test_a_worker_without_progress_is_started_again(tmp_path: Path) -> None:
    with toy(tmp_path, stall=1.0) as running:
        running.until_ready()
        begin = time.monotonic()
        assert running.predict(prompt="hang").status_code == 503
        assert time.monotonic() - begin < 15
        running.until_ready(restarts=1)
        assert running.predict().json()["status"] == "succeeded"


def test_a_set_up_that_fails_ends_everything_and_says_why(tmp_path: Path) -> None:
    with toy(tmp_path, TOY_SETUP_FAILS="1") as running:
        assert running.process.wait(30) == 1
        running.until(lambda: not running.processes())
        assert list(tmp_path.iterdir()) == []
    assert running.said[-1] == "error: the set-up failed: RuntimeError: the toy has no battery"


def test_sigterm_lets_a_prediction_finish_and_sends_its_last_webhook(tmp_path: Path, receiver: Receiver) -> None:
    receiver.delay = 0.3
    with toy(tmp_path, grace=10) as running:
        running.until_ready()
        running.begin(0.5, "finishes", webhook=receiver.url, webhook_events_filter=["completed"])
        running.process.send_signal(signal.SIGTERM)
        running.until(lambda: running.predict().status_code == 503)
        assert running.process.wait(20) == 0
        assert [payload["status"] for payload in receiver.received] == ["succeeded"]
        assert not running.processes() and list(tmp_path.iterdir()) == []


def test_sigterm_cancels_what_takes_longer_than_the_grace_period(tmp_path: Path, receiver: Receiver) -> None:
    with toy(tmp_path, grace=0.5) as running:
        running.until_ready()
        running.begin(50.0, "long", webhook=receiver.url, webhook_events_filter=["completed"])
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
        assert [payload["status"] for payload in receiver.received] == ["canceled"]


def test_what_a_killed_gateway_leaves_ends_at_once_and_is_swept_by_the_next(tmp_path: Path) -> None:
    with toy(tmp_path) as running:
        running.until_ready()
        running.begin(50.0, "orphan")
        folder = Path("/tmp/coglet/predictions/orphan")
        running.until(folder.exists)
        running.process.kill()
        running.until(lambda: not running.processes(), 10)
    with toy(tmp_path) as running:
        running.until_ready()
        assert not folder.exists()
        assert len(list(tmp_path.iterdir())) == 1
