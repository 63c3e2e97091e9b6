"""Serves the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from backend.core.errors import UserError
from modules.webui.actions import Fill
from modules.webui.offered import Offered
from modules.webui.page import CSS, Page, static_folder, theme
from modules.webui.runs import Runs

Allowed = Callable[[str, str], bool]
MOST_BYTES = "48mb"
"""Of one file that is sent, as for scripts/serve."""
SESSIONS = 200
"""Pages that are open at a time, whose state is kept."""


def launch(
    runs: Runs,
    fill: Fill,
    host: str,
    port: int,
    allowed: Allowed | None,
    scratch: Path,
    ready: Callable[[str], None],
) -> None:
    """Until Ctrl-C; ``ready`` gets the page's address. Nothing of the page comes from elsewhere, and nothing is sent
    elsewhere."""
    offered = Offered.of(runs.client.schema, runs.client.checks, scratch)
    page = Page(runs, offered, fill)
    static_folder(runs.history.folder)
    try:
        _, url, _ = page.blocks.queue(api_open=False, default_concurrency_limit=8).launch(
            server_name=host,
            server_port=port,
            auth=allowed,
            auth_message="The name may be any. The password is that of --password.",
            theme=theme(),
            css=CSS,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            max_file_size=MOST_BYTES,
            state_session_capacity=SESSIONS,
        )
    except OSError as error:
        raise UserError(f"--port: {port} cannot be used ({error}); name another one") from None
    ready(url)
    try:
        while True:
            time.sleep(3600)
    finally:
        page.blocks.close()
