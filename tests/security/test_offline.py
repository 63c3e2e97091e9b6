"""No network: a prediction does not miss it, and neither it nor the server asks for any name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.core.settings import ROOT

UNSHARE = ["unshare", "--net", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net", "--mount"]
LOOKUPS = ROOT / "tests" / "name_lookups.py"
SECONDS = 900


def permitted() -> bool:
    try:
        return (
            subprocess.run(
                [*UNSHARE, "mount", "--bind", "/dev/null", "/etc/resolv.conf"], capture_output=True, check=False
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not permitted(), reason="this machine does not permit network namespaces (unshare --net --mount)"
)

SERVE_ONE = """
import json, os, signal, subprocess, sys, time, urllib.error, urllib.request
server = subprocess.Popen(["scripts/serve", "--port", "5123"], start_new_session=True)
def get(path, body=None):
    request = urllib.request.Request("http://127.0.0.1:5123" + path, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=600))
try:
    while True:
        try:
            status = get("/health-check")["status"]
        except urllib.error.URLError:
            status = "STARTING"
        if status != "STARTING":
            break
        assert server.poll() is None
        time.sleep(0.1)
    answer = get("/predictions", {"input": {"prompt": "a portrait of a man", "num_inference_steps": 1, "megapixels": "0.25"}})
    print(status, answer["status"], answer.get("error"))
finally:
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)
"""


def looked_up(log: Path, *command: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The command's end, and the names that were asked for while it ran."""
    process = subprocess.run(
        [*UNSHARE, sys.executable, str(LOOKUPS), str(log), *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return process, log.read_text().splitlines()


def test_the_resolver_notices_what_is_asked(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    code = (
        "import socket\ntry: socket.getaddrinfo('huggingface.example', 443)\nexcept socket.gaierror: print('refused')"
    )
    process, names = looked_up(tmp_path / "names", sys.executable, "-c", code)
    assert process.stdout == "refused\n" and "huggingface.example" in names


def test_the_command_draws_without_any_network(tmp_path: Path) -> None:
    """Not even the loopback interface is up."""
    inputs = ["-i", "prompt=a portrait of a smiling woman", "-i", "num_inference_steps=1", "-i", "megapixels=0.25"]
    command = [*UNSHARE, str(ROOT / "scripts" / "predict"), *inputs, "-o", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert process.returncode == 0, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out-0.webp"]


def test_neither_the_start_of_the_server_nor_a_prediction_looks_up_a_name(tmp_path: Path) -> None:
    process, names = looked_up(tmp_path / "names", sys.executable, "-c", SERVE_ONE)
    assert process.stdout.splitlines()[-1:] == ["READY succeeded None"], process.stdout + process.stderr
    assert names == []
