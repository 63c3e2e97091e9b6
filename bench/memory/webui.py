"""Memory of ``scripts/webui`` over many predictions through the page, in a real browser.

    .venv/bin/python -m bench.memory.webui [--predictions 100]

Every prediction is the smallest: two steps, without detail pass and upscaling. Prints a Markdown table of the resident
memory of the page's process, and how much it grew.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from backend.core.settings import ROOT
from bench.support.markdown import table

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SETTLED = 20
"""Predictions before the first that counts: pools and caches grow to their size."""


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    assert match is not None
    return int(match[1]) / 1024


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def draw(page: Page, number: int) -> None:
    page.fill("#input-seed textarea, #input-seed input", str(number))
    page.click("#generate")
    page.wait_for_function(
        "count => document.querySelectorAll('#history img').length >= count", arg=min(number, 60), timeout=120_000
    )
    page.wait_for_function("() => document.querySelector('#status').innerText.includes('picture')", timeout=120_000)


def measure(folder: Path, predictions: int) -> list[tuple[int, float]]:
    """Resident MiB after so many predictions."""
    port, log = free_port(), folder / "log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "modules.cli.webui",
        "--port",
        str(port),
        "--history",
        folder / "history",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        while "the page is at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#generate")
            page.fill("#input-prompt textarea", "a man with a blue hat")
            page.get_by_role("button", name="Sampling").click()
            page.fill("#input-num_inference_steps textarea, #input-num_inference_steps input", "2")
            page.get_by_role("button", name="Upscale").click()
            page.fill("#input-scale textarea, #input-scale input", "1")
            rows = []
            for number in range(1, predictions + 1):
                draw(page, number)
                if number % max(1, predictions // 10) == 0:
                    rows.append((number, resident_mib(process.pid)))
            browser.close()
            return rows
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.predictions)
    print(table([{"predictions": number, "resident MiB": round(mib)} for number, mib in rows]))
    settled = [mib for number, mib in rows if number >= SETTLED]
    print(f"\ngrowth from {SETTLED} to {arguments.predictions} predictions: {settled[-1] - settled[0]:.0f} MiB")


if __name__ == "__main__":
    main()
