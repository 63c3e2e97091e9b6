"""A real browser on the real page, where both are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from support.processes import START_SECONDS, free_port

from backend.core.settings import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 60_000
"""Milliseconds for what takes a second on an idle machine."""
GROUPS = ("Sampling", "Upscale")
"""Of inputs, that tests unfold."""
MISSING = next(
    (
        reason
        for there, reason in (
            (CHROMIUM, "no chromium is installed: apt install chromium"),
            (find_spec("playwright"), "playwright is not installed: scripts/bootstrap dev"),
            (find_spec("gradio"), "Gradio is not installed: scripts/bootstrap webui"),
        )
        if not there
    ),
    "",
)
"""Why no page can be shown here; "" where it can."""


@dataclass
class WebUi:
    """The running page."""

    url: str
    history: Path
    log: Path
    process: subprocess.Popen[bytes]

    def wait_until_shown(self) -> None:
        begin = time.monotonic()
        while "the page is at" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - begin < START_SECONDS, self.log.read_text()
            time.sleep(0.1)


@contextmanager
def starting_page(folder: Path, *options: str) -> Iterator[WebUi]:
    """``scripts/webui`` without its installation, until the block ends. It is waited for when it is needed."""
    port, log = free_port(), folder / "log"
    temporary, history = folder / "tmp", folder / "history"
    temporary.mkdir()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": path, "FLUX_DTYPE": "float32"}
    command = [sys.executable, "-P", "-m", "modules.cli.webui", "--port", str(port), "--history", history, *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        yield WebUi(f"http://127.0.0.1:{port}/", history, log, process)
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 130, log.read_text()
    assert not list(temporary.iterdir()), "the page leaves files behind when it ends"


@contextmanager
def started_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """The page in one tab of the browser, by what a person does there."""

    page: Any
    url: str
    requests: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, context: Any, url: str) -> Tab:
        tab = cls(context.new_page(), url)
        tab.page.set_default_timeout(WAIT)
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.open()
        return tab

    def open(self) -> float:
        """Loads the page; seconds until the form is seen."""
        begin = time.monotonic()
        self.page.goto(self.url)
        self.page.wait_for_selector("#generate")
        return time.monotonic() - begin

    def show(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def write(self, name: str, text: str) -> None:
        self.page.fill(f"#input-{name} textarea, #input-{name} input", text)

    def unfold(self, group: str) -> None:
        self.page.get_by_role("button", name=group).click()

    def generate(self, prompt: str = "") -> None:
        if prompt:
            self.write("prompt", prompt)
        self.page.click("#generate")

    def draw(self, prompt: str = "") -> str:
        """The status once a picture is added to the history."""
        before = self.page.locator("#history img").count()
        self.generate(prompt)
        self.page.wait_for_function(
            "before => document.querySelectorAll('#history img').length > before", arg=before, timeout=2 * WAIT
        )
        return str(self.page.inner_text("#status"))

    def wait_for(self, text: str, part: str = "#status") -> str:
        """The text of a part of the page once it contains ``text``."""
        from playwright.sync_api import TimeoutError as TooLate

        try:
            self.page.locator(part, has_text=text).wait_for()
        except TooLate as problem:
            raise AssertionError(f"{part} shows {self.page.inner_text(part)!r} and not {text!r}") from problem
        return str(self.page.inner_text(part))

    @property
    def pictures(self) -> list[str]:
        """The addresses of what the result shows."""
        images = self.page.locator("#pictures img").all()
        return [image.get_attribute("src") for image in images]


def unfolded(tab: Tab) -> Tab:
    """With :data:`GROUPS` unfolded."""
    for group in GROUPS:
        tab.unfold(group)
    return tab


def at_rest(tab: Tab) -> Tab:
    """Set to the least work: few steps, and no upscaling."""
    tab.show("Text")
    tab.page.fill("#input-num_outputs input[type=number]", "1")
    for name, text in (("prompt", ""), ("seed", ""), ("num_inference_steps", "2"), ("scale", "1")):
        tab.write(name, text)
    return tab
