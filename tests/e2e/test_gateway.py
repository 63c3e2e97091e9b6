"""What hostile and careless clients send to the real server: each is answered in one line, and the next request is
right."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from support.data_urls import data_url, png
from support.processes import Server

from bench.robustness.hostile_bodies import png_that_claims
from modules.gateway import bodies

SMALL = {"prompt": "a man", "megapixels": "0.25", "num_inference_steps": 1, "adetailer": False, "scale": 1, "seed": 1}
COG_FOLDER = Path("/tmp/coglet/predictions")
BODIES = {
    "id too long": ({"id": "i" * 300, "input": SMALL}, 422, ["body", "id"]),
    "id is a path": ({"id": "../../x", "input": SMALL}, 422, ["body", "id"]),
    "id is absolute": ({"id": "/tmp/x", "input": SMALL}, 422, ["body", "id"]),
    "id is a dot": ({"id": "..", "input": SMALL}, 422, ["body", "id"]),
    "id is empty": ({"id": "", "input": SMALL}, 422, ["body", "id"]),
    "id has a NUL": ({"id": "a\0b", "input": SMALL}, 422, ["body", "id"]),
    "id is a number": ({"id": 7, "input": SMALL}, 422, ["body", "id"]),
    "id is not ASCII": ({"id": "é", "input": SMALL}, 422, ["body", "id"]),
    "unknown input": ({"input": {**SMALL, "promt": 1}}, 422, ["body", "input", "promt"]),
    "unknown input that is null": ({"input": {**SMALL, "stepps": None}}, 422, ["body", "input", "stepps"]),
    "unknown key": ({"input": SMALL, "webhok": "http://x"}, 422, ["body", "webhok"]),
    "inputs beside input": ({"prompt": "a man"}, 422, ["body", "prompt"]),
    "key without effect": ({"input": SMALL, "output_file_prefix": "x"}, 422, ["body", "output_file_prefix"]),
    "required input is null": ({"input": {"prompt": None}}, 422, ["body", "input", "prompt"]),
    "input is a list": ({"input": []}, 422, ["body", "input"]),
    "body is a list": ([], 422, ["body"]),
    "webhook is a file": ({"input": SMALL, "webhook": "file:///etc/passwd"}, 422, ["body", "webhook"]),
    "webhook without host": ({"input": SMALL, "webhook": "http:///x"}, 422, ["body", "webhook"]),
    "events without webhook": (
        {"input": SMALL, "webhook_events_filter": ["start"]},
        422,
        ["body", "webhook_events_filter"],
    ),
    "half a surrogate pair": ({"input": {**SMALL, "prompt": "\ud800"}}, 422, ["body", "input", "prompt"]),
    "too long a text": ({"input": {**SMALL, "prompt": "x" * 1_000_000}}, 422, ["body", "input", "prompt"]),
    "name of a megabyte": ({"input": {**SMALL, "x" * 1_000_000: 1}}, 422, None),
    "picture in a private network": (
        {"input": {**SMALL, "image": "http://127.0.0.1:9/x.png"}},
        422,
        ["body", "input", "image"],
    ),
    "one of several pictures in a private network": (
        {"input": {**SMALL, "images": [png(Image.new("RGB", (8, 8))), "http://127.0.0.1:9/x.png"]}},
        422,
        ["body", "input", "images"],
    ),
    "half a surrogate pair in a list": ({"input": {**SMALL, "images": ["\ud800"]}}, 422, ["body", "input", "images"]),
    "picture is no base64": (
        {"input": {**SMALL, "image": "data:image/png;base64,!!"}},
        422,
        ["body", "input", "image"],
    ),
    "picture is text": ({"input": {**SMALL, "image": data_url(b"hello")}}, 422, ["body", "input", "image"]),
    "picture is a bomb": (
        {"input": {**SMALL, "image": png_that_claims(20_000, 20_000)}},
        422,
        ["body", "input", "image"],
    ),
}
RAW = {
    "no JSON": (b"{", "application/json", 400),
    "no UTF-8": (b'{"input": {"prompt": "\xff"}}', "application/json", 400),
    "nested too deeply": (b'{"input":' * 100_000, "application/json", 400),
    "key twice": (b'{"input": {"prompt": "a", "prompt": "b"}}', "application/json", 400),
    "no number": (b'{"input": {"prompt": "a", "seed": NaN}}', "application/json", 400),
    "number of thousands of digits": (b'{"input": {"prompt": "a", "seed": ' + b"9" * 9000 + b"}}", "application/json", 400),
    "another type": (b"prompt=a", "application/x-www-form-urlencoded", 415),
}  # fmt: skip


@pytest.fixture(autouse=True)
def next_request_is_right(server: Server) -> Any:
    """After every request of this file."""
    yield
    response = server.predict(dict(SMALL))
    assert response.status_code == 200 and response.json()["status"] == "succeeded", response.text


@pytest.fixture(scope="module", autouse=True)
def trickled(server: Server) -> Iterator[Future[tuple[bytes, float]]]:
    """The answer to a body of which a single byte comes, and after how many seconds: the server waits for the rest
    beside the other tests of this file."""

    def send() -> tuple[bytes, float]:
        begin = time.monotonic()
        with connected(server) as client:
            client.sendall(head(server, "Content-Length: 1000") + b"{")
            return client.recv(100), time.monotonic() - begin

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(send)


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused_in_one_line(server: Server, name: str) -> None:
    body, status, place = BODIES[name]
    begin = time.monotonic()
    response = requests.post(f"{server.url}/predictions", json=body, timeout=30)
    assert time.monotonic() - begin < 10
    assert response.status_code == status
    (problem,) = response.json()["detail"]
    assert place is None or problem["loc"] == place
    assert problem["msg"] and "\n" not in problem["msg"] and len(response.content) < 2000


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_no_request_is_refused_in_one_line(server: Server, name: str) -> None:
    body, kind, status = RAW[name]
    response = requests.post(f"{server.url}/predictions", data=body, headers={"Content-Type": kind}, timeout=30)
    assert response.status_code == status
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body"] and "\n" not in problem["msg"]


@pytest.mark.parametrize("path", ["..%2f..%2fx", "%00", "i" * 300, "a%2fb", "%ff"])
def test_an_id_in_the_path_is_checked_too(server: Server, path: str) -> None:
    for method, end in (("PUT", ""), ("POST", "/cancel")):
        response = requests.request(
            method, f"{server.url}/predictions/{path}{end}", json={"input": SMALL} if not end else None, timeout=10
        )
        assert response.status_code in (404, 422) and response.json()["detail"]


def test_a_body_that_is_too_large_is_refused_before_it_has_arrived(server: Server) -> None:
    with connected(server) as client:
        client.sendall(head(server, f"Content-Length: {bodies.MAX_BYTES + 1}"))
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_chunks_that_do_not_end_are_refused_when_they_are_too_many(server: Server) -> None:
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with connected(server) as client:
        client.sendall(head(server, "Transfer-Encoding: chunked"))
        for _ in range(bodies.MAX_BYTES // 0x100000 + 1):
            client.sendall(chunk)
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_an_upload_that_is_cut_off_leaves_nothing(server: Server) -> None:
    with connected(server) as client:
        client.sendall(head(server, "Content-Length: 1000000") + b'{"input": {"image": "data:,' + b"x" * 100_000)
    assert server.comes_to_rest()


def test_null_means_left_out(server: Server) -> None:
    inputs = {**SMALL, "guidance_scale": None, "negative_prompt": None, "image": None, "width": None}
    body = {"id": None, "input": inputs, "webhook": None, "webhook_events_filter": None}
    response = requests.post(f"{server.url}/predictions", json=body, timeout=60)
    assert response.json()["status"] == "succeeded"


def test_paths_that_cog_has_and_this_server_has_not(server: Server) -> None:
    for method, path in (("POST", "/trainings"), ("POST", "/shutdown"), ("GET", "/predictions/x"), ("GET", "/etc")):
        response = requests.request(method, f"{server.url}{path}", json={"input": SMALL}, timeout=10)
        assert response.status_code in (404, 405) and response.json()["detail"]
    assert "predictions_url" in requests.get(f"{server.url}/", timeout=10).json()


def test_every_client_of_four_is_served_and_nothing_stays_behind(server: Server) -> None:
    def client(number: int) -> list[str]:
        inputs = {**SMALL, "seed": number}
        return [
            requests.post(f"{server.url}/predictions", json={"input": inputs}, timeout=300).json()["status"]
            for _ in range(3)
        ]

    with ThreadPoolExecutor(4) as clients:
        assert list(clients.map(client, range(4))) == [["succeeded"] * 3] * 4
    assert server.comes_to_rest()
    marks = list(COG_FOLDER.glob("*/.gateway"))  # those of another test's server, at work at this moment, go too
    deadline = time.monotonic() + 10
    while any(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(mark.exists() for mark in marks)


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(server: Server, header: str) -> bytes:
    lines = ("POST /predictions HTTP/1.1", "Host: x", "Content-Type: application/json", header, "", "")
    return "\r\n".join(lines).encode()


def test_a_body_that_trickles_in_is_given_up(trickled: Future[tuple[bytes, float]]) -> None:
    answer, seconds = trickled.result()
    assert answer.startswith(b"HTTP/1.1 408") and seconds < bodies.PATIENCE + 2
