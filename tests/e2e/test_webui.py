"""The page of ``scripts/webui`` in a real browser, on the embedded models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import MISSING, WAIT, Tab, WebUi, at_rest, started_browser, starting_page, unfolded

from modules.output.image_writer import read_parameters

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PROMPT = "a man with a blue hat"
FIRST_PAINT_SECONDS = 3.0
SLOW_MACHINE = 4
"""Times longer that things may take on one that does other things meanwhile."""
PAUSE = 500
"""Milliseconds that a person needs at least to go on to the next thing."""
ANSWERED = (
    "document.querySelector('#history img') || /is (missing|empty)/.test(document.querySelector('#status').innerText)"
)
"""The page has drawn a picture, or says what it lacks."""
FEWER_FRAMES = "(draw => { requestAnimationFrame = run => setTimeout(() => draw(run), 50) })(requestAnimationFrame)"
"""The editor draws by WebGL at every frame, which takes a core where no GPU does it."""
INFOTEXT = "a woman in a red shirt\nSteps: 3, Sampler: Euler, Seed: 41, Size: 256x256, Model: other"


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    with starting_page(tmp_path_factory.mktemp("webui")) as page:
        yield page


@pytest.fixture(scope="module")
def browser(starting: WebUi) -> Iterator[Any]:
    """It starts while the page loads its models."""
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def webui(starting: WebUi) -> WebUi:
    starting.wait_until_shown()
    return starting


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """Somebody's browser."""
    with browser.new_context() as context:
        yield context


@pytest.fixture(scope="module")
def first_tab(context: Any, webui: WebUi) -> Tab:
    return unfolded(Tab.opened(context, webui.url))


@pytest.fixture
def tab(first_tab: Tab) -> Tab:
    return at_rest(first_tab)


@pytest.fixture
def other(browser: Any) -> Iterator[Any]:
    """A browser that has never been here."""
    with browser.new_context() as context:
        yield context


def runs(webui: WebUi) -> list[dict[str, Any]]:
    return [
        json.loads(file.read_text())
        for file in sorted(webui.history.glob("*/*/run.json"), key=lambda one: one.stat().st_mtime)
    ]


def photograph(folder: Path, name: str = "photograph") -> Path:
    """Coloured noise of 480 x 320 pixels, all of which differ."""
    pixels, file = np.random.default_rng(5).integers(0, 256, (320, 480, 3), np.uint8), folder / f"{name}.png"
    Image.fromarray(pixels).save(file)
    return file


def set_long(tab: Tab) -> None:
    """A prediction that the browser sees running, also on a fast machine."""
    tab.write("num_inference_steps", "50")
    tab.page.fill("#input-num_outputs input[type=number]", "2")


def test_a_prompt_becomes_a_picture_and_nothing_leaves_the_machine(tab: Tab, webui: WebUi) -> None:
    tab.write("seed", "7")
    assert "by flux-embedded" in tab.draw(PROMPT)
    assert len(tab.pictures) >= 1
    (record,) = runs(webui)
    assert record["state"] == "succeeded"
    assert record["inputs"]["prompt"] == PROMPT and record["inputs"]["seed"] == 7
    assert {address.split("/")[2] for address in tab.requests if not address.startswith(("blob:", "data:"))} == {
        webui.url.split("/")[2]
    }


def test_the_form_is_seen_soon(other: Any, webui: WebUi) -> None:
    assert Tab.opened(other, webui.url).open() < SLOW_MACHINE * FIRST_PAINT_SECONDS


def test_a_running_prediction_is_shown_and_ends_within_a_step(tab: Tab, webui: WebUi) -> None:
    set_long(tab)
    tab.generate(PROMPT)
    tab.wait_for("generate")
    tab.page.wait_for_selector("#preview img")
    tab.page.click("#cancel")
    tab.wait_for("canceled")
    assert runs(webui)[-1]["state"] == "canceled"
    assert runs(webui)[-1]["pictures"] == []


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("prompt", " ", "is empty; say in words what the picture should show"),
        ("seed", "-5", "must be from 0 to 4294967295, not -5"),
        ("num_inference_steps", "many", "whole number"),
    ],
)
def test_a_wrong_input_is_told_at_its_field(tab: Tab, webui: WebUi, name: str, text: str, line: str) -> None:
    before = len(runs(webui))
    tab.write("prompt", PROMPT)
    tab.write(name, text)
    tab.generate()
    tab.wait_for(line, f"#input-{name}")
    tab.wait_for(name)
    assert len(runs(webui)) == before


def test_a_wrong_input_that_is_folded_away_is_shown(tab: Tab) -> None:
    tab.unfold("LoRA")
    tab.page.wait_for_timeout(PAUSE)  # Gradio makes the fields of a group when it is unfolded, and fills them then
    tab.write("lora_weights", "nowhere")
    tab.page.wait_for_timeout(PAUSE)
    tab.unfold("LoRA")
    tab.generate(PROMPT)
    tab.wait_for("lora_weights")
    assert tab.page.locator("#input-lora_weights").is_visible()
    tab.write("lora_weights", "")


def test_a_picture_is_redrawn(tab: Tab, webui: WebUi, tmp_path: Path) -> None:
    tab.show("Image")
    tab.generate(PROMPT)
    tab.wait_for("is missing; drop the picture to start from here", "#source-image")
    tab.page.set_input_files("#source-image input[type=file]", photograph(tmp_path))
    tab.page.wait_for_selector("#source-image img")
    tab.draw()
    assert runs(webui)[-1]["inputs"]["image"] == "input-image.png"


def test_a_picture_is_finished(tab: Tab, webui: WebUi, tmp_path: Path) -> None:
    tab.show("Finish")
    tab.page.set_input_files("#source-finish input[type=file]", photograph(tmp_path))
    tab.page.wait_for_selector("#source-finish img")
    tab.draw(PROMPT)
    assert runs(webui)[-1]["inputs"]["prompt_strength"] == 0


def stroke(tab: Tab, box: dict[str, float]) -> None:
    """Paints 40 pixels in the middle of the box."""
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.page.mouse.move(x - 20, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x + 20, y, steps=2)
    tab.page.mouse.up()


def test_what_is_painted_over_is_repainted(other: Any, webui: WebUi, tmp_path: Path) -> None:
    from playwright.sync_api import TimeoutError as TooLate

    other.add_init_script(FEWER_FRAMES)
    tab = at_rest(unfolded(Tab.opened(other, webui.url)))
    tab.show("Inpaint")
    hint, canvas = tab.page.get_by_text("Upload an image"), tab.page.locator("#editor canvas").first
    hint.wait_for()
    deadline = time.monotonic() + 2 * WAIT / 1000
    while not tab.page.locator("#history img").count():
        # the editor is seen before it takes a file (and what it had then, it does not take again), shows the file
        # before it can be painted on, and that before the page has it
        assert time.monotonic() < deadline, tab.page.inner_text("#status")
        if hint.is_visible():
            tab.page.set_input_files("#editor input[type=file]", photograph(tmp_path, str(time.monotonic())))
        with suppress(TooLate):
            hint.wait_for(state="hidden", timeout=1000)
            tab.page.wait_for_timeout(PAUSE)
            stroke(tab, canvas.bounding_box())
            tab.generate(PROMPT)
            tab.page.wait_for_function(ANSWERED, timeout=10_000)
    folder = max(webui.history.glob("*/*"), key=lambda one: one.stat().st_mtime)
    with Image.open(folder / "input-mask.png") as mask, Image.open(folder / "input-image.png") as image:
        share = np.asarray(mask).mean() / 255
        assert mask.size == image.size == (480, 320)
    assert 0.005 < share < 0.3


def test_a_picture_fills_the_form(tab: Tab, webui: WebUi, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(INFOTEXT)
    tab.page.set_input_files("#dropped input[type=file]", tmp_path / "other.txt")
    assert "here is flux-embedded" in tab.wait_for("is filled", "#filled")
    assert tab.page.input_value("#input-prompt textarea") == "a woman in a red shirt"
    assert tab.page.input_value("#input-seed input") == "41"
    assert tab.page.input_value("#input-num_inference_steps input") == "3"
    own = next(webui.history.glob("*/*/out-0.webp"))
    tab.page.set_input_files("#dropped input[type=file]", own)
    tab.wait_for("out-0.webp", "#filled")
    assert tab.page.input_value("#input-prompt textarea") in read_parameters(own)[0]


def test_two_users_wait_for_one_another_and_see_only_their_own(other: Any, tab: Tab, webui: WebUi) -> None:
    second = Tab.opened(other, webui.url)
    set_long(tab)
    tab.generate(PROMPT)
    tab.wait_for("generate")
    second.generate("a sad boy")
    second.wait_for("Waiting, 1 before it")
    second.page.click("#cancel")
    second.wait_for("canceled")
    assert second.page.locator("#history img").count() == 0
    tab.wait_for("2 pictures")
    assert [record["state"] for record in runs(webui)[-2:]].count("succeeded") == 1


def test_neither_another_tab_nor_a_reload_loses_the_run_or_the_history(context: Any, tab: Tab, webui: WebUi) -> None:
    """The last one in this tab: a page that is loaded again begins with an empty form."""
    set_long(tab)
    tab.generate(PROMPT)
    tab.wait_for("generate")
    second = Tab.opened(context, webui.url)
    second.wait_for("generate")
    second.open()
    tab.wait_for("2 pictures")
    newest = tab.page.locator("#history img").first.get_attribute("src")
    # its status is empty where the page was there again only after the run
    second.page.locator("#history img").first.and_(second.page.locator(f'[src="{newest}"]')).wait_for()
    second.page.close()
    tab.open()
    tab.page.locator("#history img").first.click()
    tab.wait_for("2 pictures")
    tab.page.click("#again")
    tab.wait_for("is filled", "#filled")
    assert tab.page.input_value("#input-prompt textarea") == PROMPT
