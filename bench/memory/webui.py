"""Memory of ``scripts/webui`` over many predictions through the page, in a real browser.

    .venv/bin/python -m bench.memory.webui [--predictions 100]

Every prediction is the smallest: two steps, without detail pass and upscaling. Prints a Markdown table of the resident
memory of the page's process, and how much it grew.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from bench.support.markdown import table
from bench.support.page import chromium, running_page

SETTLED = 20
"""Predictions before the first that counts: pools and caches grow to their size."""


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    assert match is not None
    return int(match[1]) / 1024


def draw(page: Page, number: int) -> None:
    page.fill("#input-seed textarea, #input-seed input", str(number))
    page.click("#generate")
    page.wait_for_function(
        "count => document.querySelectorAll('#history img').length >= count", arg=min(number, 60), timeout=120_000
    )
    page.wait_for_function("() => document.querySelector('#status').innerText.includes('picture')", timeout=120_000)


def measure(folder: Path, predictions: int) -> list[tuple[int, float]]:
    """Resident MiB after so many predictions."""
    with running_page(folder) as (url, pid), chromium() as browser:
        page = browser.new_page()
        page.goto(url)
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
                rows.append((number, resident_mib(pid)))
        return rows


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
