"""``scripts/healthcheck``: whether a server can take predictions.

Cog answers ``/health-check`` with 200 even when its worker has died, so the body decides. This needs nothing but
Python, so that an image can use it: ``HEALTHCHECK --start-period=10m CMD /src/scripts/healthcheck``.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence

from modules.cli.command import FAILED, CommandParser

TIMEOUT = 0.8
"""Seconds after which a server counts as not answering."""
ABLE = ("READY", "BUSY")


def status(url: str) -> str:
    """The status that the server reports, or why there is none."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health-check", timeout=TIMEOUT) as answer:
            return str(json.loads(answer.read(100_000))["status"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no answer ({error})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the status; gives 0 for a server that can take predictions, else 1."""
    parser = CommandParser(
        "scripts/healthcheck",
        description="Whether a server can take predictions.",
        epilog="Exit status: 0 it can, 1 it cannot or does not answer within 0.8 s.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the server's address (%(default)s)")
    found = status(parser.parse_args(arguments).url)
    print(found)
    return 0 if found in ABLE else FAILED
