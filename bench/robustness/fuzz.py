"""Sends requests made from its own schema to a server: ``python -m bench.robustness.fuzz [--requests 10000] [--seed 0]
[--url URL]``.

Inputs are made from the server's OpenAPI document: valid ones (small, so that a picture takes a fraction of a second),
invalid ones of every kind, bodies that are hostile or no request, odd paths and methods. A fault is a 5xx, no answer in time, or
an answer that contains a path, a secret or a stack trace. Either side may close a kept-alive connection at any time
(RFC 9112, 9.5), so a request that hits a closed one is sent once more and counted. Afterwards the server must be ready
and generate the same picture as before. Without ``--url`` a server is started. Exit code 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image

from backend.core.settings import ROOT
from bench.robustness.hostile_bodies import heavy_bodies, light_bodies
from bench.support.hostile_texts import INFOTEXTS, TEXTS, UNITS

SECRET = "hf_notToBeSeen0123456789"
"""In the environment of the server, as a token would be."""
FORBIDDEN = (str(ROOT), SECRET, "/tmp/", "/root/", "/home/", "site-packages", "Traceback", 'File "', "root:x:0:0")
SECONDS = 60.0
"""An answer that takes longer counts as none."""

SMALL: Mapping[str, Any] = {"num_inference_steps": 1, "megapixels": "0.25", "scale": 1, "adetailer": False}
"""What every request begins with; drawn inputs go over it."""
AT_MOST: Mapping[str, float] = {
    "num_inference_steps": 2,
    "num_outputs": 2,
    "scale": 1.5,
    "hr_scale": 1.3,
    "hr_steps": 2,
    "width": 288,
    "height": 288,
}
"""Right values above these would only take time."""
PLAIN: Mapping[str, Any] = {**SMALL, "prompt": "a portrait of a man", "seed": 1, "output_format": "png"}

Inputs = dict[str, Any]
Properties = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """One HTTP request. ``body`` is sent as it is."""

    method: str
    path: str
    body: bytes
    content_type: str = "application/json"


@dataclass
class Report:
    """What came back: answers by status code, predictions by state, and what must not be."""

    answers: Counter[int] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    reconnected: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def lines(self) -> list[str]:
        answers = ", ".join(f"{count} x {code}" for code, count in sorted(self.answers.items()))
        states = ", ".join(f"{count} {state}" for state, count in self.states.most_common())
        total = f"{sum(self.answers.values())} answers in {self.seconds:.0f} s, the slowest after {self.slowest:.1f} s"
        return [
            f"{total}: {answers}; predictions: {states}; {self.reconnected} on a new connection",
            *(f"fault: {fault}" for fault in self.faults),
        ]


def picture(mode: str, size: tuple[int, int], kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new(mode, size, 128 if len(mode) == 1 else (120, 90, 60)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


PICTURES = (picture("RGB", (64, 64)), picture("L", (64, 64)), picture("RGB", (64, 48), "JPEG"), picture("RGB", (1, 1)))
NO_PICTURES = (
    "", "x", "/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "data:", "data:image/png;base64,", "data:image/png;base64,!!!", "data:,hello",
    "http://127.0.0.1:9/x.png", "https://[::1]:9/", "http://", "ftp://127.0.0.1/x", "data:image/svg+xml,<svg/>", PICTURES[0][:90],
)  # fmt: skip
OURS_TO_REFUSE: Sequence[Mapping[str, Any]] = (
    {"prompt": " "}, {"aspect_ratio": "custom"}, {"aspect_ratio": "custom", "width": 257, "height": 256}, {"mask": PICTURES[0]},
    {"adetailer": True, "adetailer_args": "[[["}, {"image": "data:text/plain,hello"}, {"image": NO_PICTURES[-1]}, {"image": PICTURES[0], "mask": PICTURES[2]},
)  # fmt: skip
"""What the schema allows and the package does not."""
UNIT_TEXTS = (
    "",
    "{}",
    "[]",
    '{"ad_confidence": 0.5}',
    '[{"ad_mask_k": 1}]',
    '{"ad_x": 1}',
    '{"ad_confidence": 7}',
    "[" * 5000,
    "{",
    "null",
    '"x"',
    "[1]",
    "1e999",
    *UNITS.values(),
)
ODD_TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", " ", "${HF_TOKEN}", "../" * 20, *TEXTS.values()]),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
RAW_BODIES = (
    b"", b"{", b"[]", b"null", b'"x"', b"0", b'{"input": null}', b'{"input": []}', b'{"input": {}}', b'{"inputs": {"prompt": "x"}}', b"[" * 50_000,
    b'{"input": {"prompt": "\\ud800"}}', b'{"input": {"prompt": "x", "seed": 1e999}}', b'{"input": {"prompt": "x", "seed": NaN}}',
    b'{"input": {"prompt": "x", "seed": 99999999999999999999999999}}', b'{"input": {"prompt": "", "prompt": 1}}', b"\xff\xfe\x00",
    b'{"input": {"prompt": "\xff"}}',
)  # fmt: skip
HEAVY_SHARE = 50
"""Of so many hostile bodies one has megabytes."""
PATHS = (
    "/", "/predictions", "/predictions/", "/predictions/x", "/predictions/..%2f..%2fetc%2fpasswd", "/predictions/%00", "/predictions/x/cancel", "/trainings",
    "/health-check", "/openapi.json", "/etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/predictions/" + "a" * 3000, "/predictions/%ff/cancel",
)  # fmt: skip
METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "POST")


def right_value(name: str, prop: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows for an input."""
    if "enum" in prop:
        return st.sampled_from(prop["enum"])
    if prop.get("format") == "uri":
        return st.sampled_from(PICTURES)
    if "items" in prop:
        return st.lists(st.sampled_from(PICTURES), max_size=2)
    if name.startswith("adetailer_args"):
        return st.sampled_from(UNIT_TEXTS)
    if name == "prompt":
        return ODD_TEXT.filter(bool) | st.sampled_from(sorted(INFOTEXTS.values()))
    kind, low, high = (
        prop["type"],
        prop.get("minimum", 0),
        min(prop.get("maximum", 2**32 - 1), AT_MOST.get(name, 2**32 - 1)),
    )
    if kind == "integer":
        return st.integers(int(low), int(high)) | st.sampled_from([int(low), int(high)])
    if kind == "number":
        return st.floats(low, high) | st.sampled_from([low, high])
    if kind == "boolean":
        return st.booleans()
    return ODD_TEXT.filter(bool)


def wrong_value(name: str, prop: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that are mostly not allowed: of another type, outside of the range, or no picture."""
    if prop.get("format") == "uri":
        return st.sampled_from(NO_PICTURES) | ANYTHING
    if "items" in prop:
        return st.lists(st.sampled_from(NO_PICTURES) | ANYTHING, max_size=20) | ANYTHING
    edges = [prop[bound] + step for bound, step in (("minimum", -1), ("maximum", 1)) if bound in prop]
    return st.sampled_from([*edges, 10**30, -1, 1e308, "", "1", None, [], {}]) | ANYTHING | ODD_TEXT


@st.composite
def predictions(draw: st.DrawFn, properties: Properties) -> Request:
    """A request for a prediction; in seven of eight something is wrong with it, or at least odd."""
    kind = draw(st.sampled_from(("right", "ours to refuse") + ("wrong",) * 6))
    names = draw(st.lists(st.sampled_from(sorted(properties)), max_size=5, unique=True))
    inputs: Inputs = {
        **SMALL,
        "prompt": "a portrait of a man",
        **{name: draw(right_value(name, properties[name])) for name in names},
    }
    if kind == "ours to refuse":
        inputs |= draw(st.sampled_from(OURS_TO_REFUSE))
    if kind == "wrong":
        for name in draw(st.lists(st.sampled_from(sorted(properties)), min_size=1, max_size=2, unique=True)):
            inputs[name] = draw(wrong_value(name, properties[name]))
        if draw(st.integers(0, 9)) == 0:
            inputs.pop("prompt", None)
        if draw(st.integers(0, 9)) == 0:
            inputs[draw(st.text(max_size=12))] = draw(ANYTHING)
    return Request("POST", "/predictions", json.dumps({"input": inputs}).encode("utf-8", "surrogatepass"))


def others() -> st.SearchStrategy[Request]:
    """Bodies that are no request, and odd paths and methods."""
    bodies = (
        st.sampled_from(RAW_BODIES)
        | st.binary(max_size=200)
        | ANYTHING.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    )
    types = st.sampled_from(
        ["application/json", "text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
    )
    return st.builds(Request, st.just("POST"), st.just("/predictions"), bodies, types) | st.builds(
        Request, st.sampled_from(METHODS), st.sampled_from(PATHS), bodies, types
    )


@st.composite
def hostile(draw: st.DrawFn) -> Request:
    """What somebody sends to break a server."""
    bodies = heavy_bodies() if draw(st.integers(1, HEAVY_SHARE)) == 1 else light_bodies()
    name = draw(st.sampled_from(sorted(bodies)))
    put = draw(st.booleans())
    return Request("PUT" if put else "POST", "/predictions/hostile" if put else "/predictions", bodies[name])


def properties_of(document: Mapping[str, Any]) -> Properties:
    """The inputs in a server's OpenAPI document, each with its choices."""
    schemas = document["components"]["schemas"]
    found = schemas["Input"]["properties"]
    return {name: {**(schemas[name] if "allOf" in prop else {}), **prop} for name, prop in found.items()}


class Fuzzer:
    """Sends requests to the server at ``url`` and judges the answers."""

    def __init__(self, url: str) -> None:
        self.url, self.report, self.session = url, Report(), requests.Session()

    def run(self, count: int, seed: int = 0) -> Report:
        """``count`` requests, the same ones for the same seed and schema."""
        properties = properties_of(self.session.get(f"{self.url}/openapi.json", timeout=SECONDS).json())
        before = self.plain_picture()
        every = st.one_of(predictions(properties), predictions(properties), hostile(), others())

        @seeded(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(every)
        def throw(request: Request) -> None:
            self.send(request)

        begin = time.monotonic()
        throw()
        self.report.seconds = time.monotonic() - begin
        if self.plain_picture() != before:
            self.report.faults.append("the picture after all requests is not the one before them")
        return self.report

    def send(self, request: Request) -> None:
        begin = time.monotonic()
        try:
            answer = self._answer(request)
        except requests.RequestException as error:
            self._fault(f"no answer ({type(error).__name__})", request)
            return
        self.report.slowest = max(self.report.slowest, time.monotonic() - begin)
        self.report.answers[answer.status_code] += 1
        if answer.status_code >= 500:
            self._fault(f"{answer.status_code}: {answer.text[:200]}", request)
        leaked = [word for word in FORBIDDEN if word in answer.text and word.encode() not in request.body]
        if leaked:
            self._fault(f"the answer holds {leaked}: {answer.text[:400]}", request)
        if answer.ok and request.path == "/predictions" and request.method == "POST":
            self.report.states[answer.json().get("status", "")] += 1

    def _answer(self, request: Request) -> requests.Response:
        headers = {"Content-Type": request.content_type} if request.content_type else {}
        given: dict[str, Any] = {"data": request.body, "headers": headers, "timeout": SECONDS}
        try:
            return self.session.request(request.method, self.url + request.path, **given)
        except requests.ConnectionError:
            self.report.reconnected += 1
            return requests.request(request.method, self.url + request.path, **given)

    def plain_picture(self) -> bytes:
        """The pixels of a plain prediction. Raises RuntimeError when there is none."""
        answer = self.session.post(f"{self.url}/predictions", json={"input": dict(PLAIN)}, timeout=SECONDS).json()
        if answer["status"] != "succeeded":
            raise RuntimeError(f"a plain prediction {answer['status']}: {answer['error']}")
        with Image.open(io.BytesIO(base64.b64decode(answer["output"][0].partition(",")[2]))) as image:
            return image.convert("RGB").tobytes()

    def _fault(self, words: str, request: Request) -> None:
        self.report.faults.append(f"{words} <- {request.method} {request.path[:80]} {request.body[:300]!r}")


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            status = requests.get(f"{url}/health-check", timeout=SECONDS).json()["status"]
        except requests.ConnectionError:
            status = "STARTING"
        if status == "READY":
            return
        if status != "STARTING":
            break
        time.sleep(0.2)
    sys.exit("the server does not start")


@contextmanager
def own_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on the embedded models that is ready, with a secret in its environment and a temporary folder of its
    own, in which it must leave nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_TOKEN": SECRET, "FLUX_MODEL": "embedded", "TMPDIR": folder}
        server = subprocess.Popen(
            [ROOT / "scripts" / "serve", "--port", str(port)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}", server
        finally:
            server.terminate()
            server.wait(60)
        if left := sorted(path.name for path in Path(folder).iterdir()):
            sys.exit(f"the server leaves temporary files: {left}")


def fuzz_own_server(count: int, seed: int) -> Report:
    with own_server() as (url, server):
        report = Fuzzer(url).run(count, seed)
        if server.poll() is not None:
            report.faults.append("the server has ended")
        return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a server that runs already, on the embedded models")
    options = parser.parse_args(arguments)
    report = (
        Fuzzer(options.url).run(options.requests, options.seed)
        if options.url
        else fuzz_own_server(options.requests, options.seed)
    )
    print(*report.lines(), sep="\n")
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
