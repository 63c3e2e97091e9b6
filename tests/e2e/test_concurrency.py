"""Several clients of Cog's real server at once: each is served in its turn, and gets its own metrics, logs and files."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from support.data_urls import png
from support.processes import PREDICTION_SECONDS, Server

SMALL: Mapping[str, Any] = {
    "prompt": "a portrait of a man",
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "adetailer": False,
    "scale": 1,
}
LONG: Mapping[str, Any] = {**SMALL, "num_inference_steps": 50, "num_outputs": 4, "megapixels": "1"}
"""Takes a minute, so that whatever follows it waits."""


def send(server: Server, inputs: Mapping[str, Any], prediction: str = "") -> requests.Response:
    """Asks at once, whoever else is served."""
    return requests.put(
        f"{server.url}/predictions/{prediction or server.new_id()}",
        json={"input": inputs},
        timeout=PREDICTION_SECONDS,
    )


def cancel(server: Server, prediction: str) -> None:
    assert requests.post(f"{server.url}/predictions/{prediction}/cancel", timeout=10).ok


def has_begun(server: Server, prediction: str) -> None:
    """Waits until the server has taken a request."""
    deadline = time.monotonic() + 60
    while prediction not in server.log.read_text():
        assert time.monotonic() < deadline, f"{prediction} was not taken"
        time.sleep(0.02)


class Sender:
    """Sends requests in other threads."""

    def __init__(self, server: Server, pool: ThreadPoolExecutor) -> None:
        self.server, self.pool = server, pool

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[str, Future[dict[str, Any]]]:
        """The request's id and its future answer; returns when the server has taken the request."""
        prediction = self.server.new_id()
        answer = self.pool.submit(lambda: send(self.server, inputs, prediction).json())
        has_begun(self.server, prediction)
        return prediction, answer


@pytest.fixture
def in_background(server: Server) -> Iterator[Sender]:
    with ThreadPoolExecutor(8) as pool:
        yield Sender(server, pool)


@contextmanager
def a_long_one(server: Server, in_background: Sender) -> Iterator[str]:
    """Computes meanwhile, and is canceled in the end."""
    prediction, answer = in_background(LONG)
    try:
        yield prediction
    finally:
        cancel(server, prediction)
        answer.result(60)


def test_a_client_that_waits_for_every_answer_is_never_turned_away(server: Server) -> None:
    assert [send(server, SMALL).status_code for _ in range(12)] == [200] * 12


def test_four_clients_at_once_are_all_served_in_order(server: Server) -> None:
    """The order of the answers is that in which the server took the requests, which its log tells."""
    answered: list[str] = []
    seeds: dict[str, int] = {}

    def client(number: int) -> None:
        for turn in range(5):
            prediction, seed = server.new_id(), 100 * number + turn
            answer = send(server, {**SMALL, "seed": seed}, prediction).json()
            assert answer["status"] == "succeeded", answer["error"]
            answered.append(prediction)
            seeds[prediction] = int(re.findall(r"seed (\d+)", answer["logs"])[0])
            assert seeds[prediction] == seed and len(re.findall(r"seed (\d+)", answer["logs"])) == 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
        time.sleep(0.1)  # else the server itself takes the first four in any order
    for thread in clients:
        thread.join()
    assert len(set(answered)) == 20
    log = server.log.read_text()
    taken = sorted(answered, key=log.index)
    assert max(abs(taken.index(prediction) - place) for place, prediction in enumerate(answered)) <= 1


def test_a_waiting_one_is_canceled_at_once_and_the_others_go_on(server: Server, in_background: Sender) -> None:
    with a_long_one(server, in_background):
        waiting, answer = in_background(SMALL)
        begin = time.monotonic()
        cancel(server, waiting)
        assert answer.result(60)["status"] == "canceled"
        assert time.monotonic() - begin < 1
        _, following = in_background(SMALL)
    assert following.result(60)["status"] == "succeeded"


def test_a_running_one_is_canceled_within_a_step(server: Server, in_background: Sender) -> None:
    running, canceled = in_background(LONG)
    _, following = in_background(SMALL)
    time.sleep(0.5)
    begin = time.monotonic()
    cancel(server, running)
    assert canceled.result(60)["status"] == "canceled"
    result = following.result(60)
    assert result["status"] == "succeeded" and time.monotonic() - begin < 10


def test_each_gets_its_own_metrics_and_logs(server: Server, in_background: Sender) -> None:
    with a_long_one(server, in_background):
        _, two = in_background({**SMALL, "num_inference_steps": 2, "seed": 1002})
        _, three = in_background({**SMALL, "num_inference_steps": 3, "seed": 1003, "scale": 1.5})
        time.sleep(0.5)
    for answer, steps in ((two.result(60), 2), (three.result(60), 3)):
        lines = [line for line in answer["logs"].splitlines() if line.endswith("generate")]
        assert lines and all(f"/{steps} generate" in line for line in lines)
        assert re.findall(r"seed (\d+)", answer["logs"]) == [f"100{steps}"]
        assert ("upscale" in answer["metrics"]) == (steps == 3)
        assert answer["metrics"]["queue_seconds"] >= 0.4 > answer["metrics"]["inputs"]["seconds"]


def test_an_image_of_a_waiting_request_stays_until_it_is_read(server: Server, in_background: Sender) -> None:
    image = png(Image.new("RGB", (256, 256), "white"))
    with a_long_one(server, in_background):
        answers = [in_background({**SMALL, "image": image, "num_inference_steps": 2})[1] for _ in range(2)]
        assert send(server, {**SMALL, "image": "/etc/hostname"}).status_code == 422
    assert [answer.result(60)["status"] for answer in answers] == ["succeeded"] * 2


def test_nothing_stays_behind(server: Server) -> None:
    assert server.comes_to_rest()
    assert not [name for name in server.ids if (Path("/tmp/coglet/predictions") / name).exists()]
