"""``scripts/webui``: a page for a browser, on the service in this process or on a running server."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from hmac import compare_digest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.core.errors import InputError, UserError
from modules.cli.command import CommandParser, check_folder, exit_with, run_in_scratch
from modules.cli.given_inputs import PictureSource

if TYPE_CHECKING:
    from modules.webui.client import Client

INSTALL = "scripts/bootstrap webui"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _parser() -> CommandParser:
    parser = CommandParser("scripts/webui", description="A page to draw and finish pictures on.")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s); 0.0.0.0 is all")
    parser.add_argument("--server", default="", metavar="URL", help="draw with a running server, as of scripts/serve")
    parser.add_argument("--password", default="", metavar="TEXT", help="ask for it first; @FILE reads it from a file")
    parser.add_argument(
        "--history",
        type=Path,
        default=_data_folder() / "webui",
        metavar="DIR",
        help="folder for the pictures of all sessions (%(default)s)",
    )
    return parser


def _data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cog-flux-adetailer"


def _check(options: argparse.Namespace) -> None:
    if find_spec("gradio") is None:
        raise UserError(f"the page needs Gradio, which is not installed: run {INSTALL}")
    if not 0 <= options.port <= 65535:
        raise InputError("--port", f"must be from 0 to 65535, not {options.port}")
    check_folder("--history", options.history)
    if options.host not in LOOPBACK and not options.password:
        print(
            f"warning: everybody who reaches {options.host} can use this page; --password asks for one", file=sys.stderr
        )


def _password(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text().strip()
    except OSError as error:
        raise InputError("--password", f"cannot read '{given[1:]}': {error.strerror}") from None


def _client(server: str) -> Client:
    """What draws; called in the thread that is going to."""
    if server:
        from modules.webui.server_client import ServerClient

        return ServerClient(server)
    from backend.core.settings import load_settings
    from modules.app.service import start_process
    from modules.webui.service_client import ServiceClient

    return ServiceClient(start_process(load_settings(), served=False))


def _fill(client: Client, file: Path) -> tuple[dict[str, Any], list[str]]:
    """The inputs that a picture names. Without what the model honours a WebUI's text goes into the prompt, where the
    server reads it."""
    from modules.webui.service_client import ServiceClient

    source = PictureSource(file, client.schema)
    if isinstance(client, ServiceClient):
        return source.inputs({}, client.service)
    if source.recorded:
        return client.schema.validate(source.recorded.under({})), source.recorded.notices
    return {"prompt": source.text}, ["the server reads the parameters in the prompt"]


def _tell(url: str) -> None:
    print(f"the page is at {url}", file=sys.stderr, flush=True)


def _allowed(password: str, name: str, given: str) -> bool:
    return compare_digest(password.encode(), given.encode())


def _serve(options: argparse.Namespace, scratch: Path) -> int:
    _check(options)
    password = _password(options.password)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(scratch / "uploads")
    from modules.webui.history import History
    from modules.webui.runs import Runs

    print(f"asking {options.server}" if options.server else "loading the models", file=sys.stderr)
    runs = Runs(partial(_client, options.server), History(options.history.resolve()))
    try:
        from modules.webui.launch import launch

        allowed = partial(_allowed, password) if password else None
        fill = partial(_fill, runs.client)
        launch(runs, fill, options.host, options.port, allowed, Path(tempfile.gettempdir()), _tell)
    finally:
        runs.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C or SIGTERM; returns the exit code."""
    options = _parser().parse_args(arguments)
    return run_in_scratch(partial(_serve, options), "the page is closed")


if __name__ == "__main__":
    exit_with(main)
