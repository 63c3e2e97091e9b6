"""The page of ``scripts/webui`` beside a server, in a real browser: with a password, and without models of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from support.browser import MISSING, WAIT, Tab, at_rest, started_browser, starting_page, unfolded
from support.pictures import PROMPT
from support.processes import Server

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PASSWORD = "open sesame"


def test_a_page_with_a_password_draws_with_a_server(server: Server, tmp_path: Path) -> None:
    with (
        starting_page(tmp_path, "--server", server.url, "--password", PASSWORD) as webui,
        started_browser() as browser,
        browser.new_context() as somebody,
    ):
        webui.wait_until_shown()
        page = somebody.new_page()
        page.goto(webui.url)
        assert requests.get(f"{webui.url}config", timeout=10).status_code == 401
        for password, seen in (("wrong", "text=/incorrect/i"), (PASSWORD, "#generate")):
            page.get_by_label("username").fill("anybody")
            page.get_by_label("password").fill(password)
            page.get_by_role("button", name="Login").click()
            page.wait_for_selector(seen, timeout=WAIT)
        tab = at_rest(unfolded(Tab(page, webui.url)))
        assert f"by {server.url}" in tab.draw(PROMPT)
        tab.write("seed", "-5")
        tab.generate()
        tab.wait_for("must be from 0 to 4294967295, not -5", "#input-seed")
        (file,) = webui.history.glob("*/*/run.json")
        record = json.loads(file.read_text())
        assert record["state"] == "succeeded" and record["metrics"]["seed"] >= 0
