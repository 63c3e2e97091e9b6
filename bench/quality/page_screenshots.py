"""Screenshots of the page of ``scripts/webui``, for the documents: ``python -m bench.quality.page_screenshots
[-o docs/images]``.

The embedded models draw in a real browser: every tab, a prediction while it runs and when it has ended, a wrong input,
and the page on a phone.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize

from bench.quality.finished_photo import photograph
from bench.support.page import chromium, running_page

DESK, PHONE = ViewportSize(width=1360, height=900), ViewportSize(width=390, height=844)
TALL = ViewportSize(width=1360, height=1250)
PORTRAIT = "a portrait of a smiling woman with long red hair, glasses, blue shirt, green background"
COUPLE = "two people: a man with a beard, a woman in a red shirt"
WAIT = 120_000


@dataclass
class Screenshots:
    """Takes pictures of one page into ``folder``."""

    page: Page
    folder: Path

    def take(self, name: str) -> None:
        """The part of the page that is seen, as ``NAME.webp``."""
        self.page.wait_for_timeout(1200)
        with Image.open(io.BytesIO(self.page.screenshot())) as image:
            image.convert("RGB").save(self.folder / f"{name}.webp", quality=72, method=6)

    def write(self, name: str, text: str) -> None:
        self.page.fill(f"#input-{name} textarea, #input-{name} input", text)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def draw(self, prompt: str, seed: int) -> None:
        """Until the picture is in the history."""
        before = self.page.locator("#history img").count()
        self.write("prompt", prompt)
        self.write("seed", str(seed))
        self.page.click("#generate")
        self.page.wait_for_function(
            "before => document.querySelectorAll('#history img').length > before", arg=before, timeout=WAIT
        )

    def give(self, where: str, file: Path) -> None:
        self.page.set_input_files(f"{where} input[type=file]", file)
        self.page.wait_for_timeout(2500)


@contextmanager
def on_desk(browser: Browser, url: str, folder: Path) -> Iterator[Screenshots]:
    page = browser.new_page(viewport=DESK, color_scheme="light")
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.wait_for_selector("#generate:enabled")
    yield Screenshots(page, folder)
    page.close()


def predictions(shots: Screenshots) -> None:
    """Running, and finished with what the detail pass saw and where the time went."""
    for prompt, seed in ((PORTRAIT, 3), (COUPLE, 4), (PORTRAIT, 21)):
        shots.draw(prompt, seed)
    shots.write("prompt", PORTRAIT)
    shots.write("seed", "14")
    shots.page.fill("#input-num_outputs input[type=number]", "4")  # one may be there before the browser shows anything
    shots.page.click("#generate")
    shots.page.wait_for_selector("#preview img")
    shots.take("webui-running")
    shots.page.wait_for_function("() => document.querySelectorAll('#history img').length > 3", timeout=WAIT)
    shots.page.set_viewport_size(TALL)
    shots.take("webui")
    shots.page.set_viewport_size(DESK)
    shots.page.fill("#input-num_outputs input[type=number]", "1")
    shots.draw(COUPLE, 4)
    for title, name in (("Detail pass", "details"), ("Time and memory", "time")):
        shots.tab(title)
        shots.page.locator("#history").scroll_into_view_if_needed()
        shots.take(f"webui-{name}")
    shots.page.evaluate("window.scrollTo(0, 0)")


def wrong_input(shots: Screenshots) -> None:
    shots.tab("Text")
    shots.write("seed", "-5")
    shots.page.click("#generate")
    shots.page.wait_for_function("() => document.querySelector('#input-seed').innerText.includes('not -5')")
    shots.take("webui-error")


def tabs(shots: Screenshots, given: Path) -> None:
    for name, where in (("Image", "#source-image"), ("Finish", "#source-finish"), ("Inpaint", "#editor")):
        shots.tab(name)
        shots.page.wait_for_timeout(1500)
        shots.give(where, given)
        if name == "Inpaint":
            paint(shots.page)
        shots.take(f"webui-{name.lower()}")


def paint(page: Page) -> None:
    box = page.locator("#editor canvas").first.bounding_box()
    assert box is not None
    middle, height = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle - 60, height)
    page.mouse.down()
    page.mouse.move(middle + 60, height - 20, steps=4)
    page.mouse.up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("docs/images"), help="folder (docs/images)")
    folder = parser.parse_args().o
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, running_page(Path(name)) as (url, _), chromium() as browser:
        given = Path(name, "street.png")
        photograph("street", (900, 600)).save(given)
        with on_desk(browser, url, folder) as shots:
            predictions(shots)
            state = shots.page.context.storage_state()
            tabs(shots, given)
            wrong_input(shots)
        phone = browser.new_context(
            viewport=PHONE, color_scheme="dark", is_mobile=True, has_touch=True, storage_state=state
        )
        page = phone.new_page()
        page.goto(url)
        page.wait_for_selector("#generate:enabled")
        page.locator("#history img").first.click()
        page.wait_for_timeout(1500)
        page.locator("#status").scroll_into_view_if_needed()
        Screenshots(page, folder).take("webui-phone")


if __name__ == "__main__":
    main()
