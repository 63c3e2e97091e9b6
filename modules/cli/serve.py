"""``scripts/serve``: Cog's own server behind the gateway."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from backend.api.input_schema import PREDICTOR_FILE
from backend.core.errors import UserError
from backend.core.scratch import scratch_folder
from modules.cli.command import BAD_INPUT, FAILED, CommandParser, exit_with

SLOTS_VARIABLE, SLOTS = "COG_MAX_CONCURRENCY", 16


T = TypeVar("T", int, float)


def _number(kind: Callable[[str], T], low: T, high: T) -> Callable[[str], T]:
    def number(text: str) -> T:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {text}")
        return value

    number.__name__ = "number"
    return number


def _parser() -> CommandParser:
    parser = CommandParser(
        "scripts/serve",
        description="Serves predictions over HTTP: Cog's own server, behind a gateway that checks what comes in.",
        epilog="Exit status: 0 after SIGTERM or Ctrl-C, 1 where the set-up failed, 2 for a wrong option.",
    )
    parser.add_argument("--port", type=_number(int, 0, 65535), default=5000, help="(%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s); 0.0.0.0 is all")
    parser.add_argument(
        "--slots",
        type=_number(int, 1, 1000),
        default=os.environ.get(SLOTS_VARIABLE, str(SLOTS)),
        metavar="N",
        help="predictions that may run or wait at a time (%(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=_number(float, 0, 86400),
        default=8.0,
        metavar="SECONDS",
        help="after SIGTERM, before predictions that still run are cancelled (%(default)s)",
    )
    parser.add_argument(
        "--stall",
        type=_number(float, 1, 86400),
        default=600.0,
        metavar="SECONDS",
        help="without progress of a prediction, before the worker is started again (%(default)s)",
    )
    parser.add_argument("--upload-url", default="", metavar="URL", help="where Cog's server sends the pictures by PUT")
    parser.add_argument(
        "--private-addresses", action="store_true", help="fetch input pictures also from private networks"
    )
    return parser


def listener(host: str, port: int) -> socket.socket:
    """Raises :class:`UserError` for an address or a port that cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host: '{host}' is no address; use 127.0.0.1, or 0.0.0.0 for all") from None
    except OSError as error:
        raise UserError(f"--port: cannot listen on port {port} of {host}: {os.strerror(error.errno or 0)}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is told to end; gives the exit status."""
    options = _parser().parse_args(arguments)
    if options.upload_url and not options.upload_url.startswith(("http://", "https://")):
        _parser().error("argument --upload-url: must be an http(s) address")
    try:
        opened = listener(options.host, options.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    from modules.gateway.app import Gateway, GatewayOptions
    from modules.gateway.cog_server import CogOptions

    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    cog = CogOptions(PREDICTOR_FILE, options.slots, options.upload_url)
    gateway = GatewayOptions(cog, options.grace, options.stall, options.private_addresses)
    print(f"listening on http://{options.host}:{opened.getsockname()[1]}", file=sys.stderr, flush=True)
    try:
        with scratch_folder() as scratch:
            asyncio.run(Gateway(gateway, scratch).serve(opened))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    exit_with(main)
