"""``scripts/healthcheck``: whether a server can take predictions.

Cog answers ``/health-check`` with 200 even when its worker has died, so the body decides. A server that computes must
also make progress. This needs nothing but Python, so that an image can use it:
``HEALTHCHECK --start-period=10m CMD /src/scripts/healthcheck``.
"""

from __future__ import annotations

import json
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.core.heartbeat import idle_seconds, silent_seconds
from backend.core.scratch import held_folders
from modules.cli.command import FAILED, CommandParser

TIMEOUT = 3.0
"""Seconds after which a server counts as not answering."""
ABLE = ("READY", "BUSY")


def health(url: str) -> Mapping[str, Any]:
    """The answer of the server, or a status that says why there is none."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health-check", timeout=TIMEOUT) as answer:
            found: Mapping[str, Any] = json.loads(answer.read(10_000_000))
            return {**found, "status": str(found["status"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"status": f"no answer ({error})"}


def without_progress(found: Mapping[str, Any]) -> float:
    """Seconds. The gateway says so; for Cog's server alone the worker's own file does, where it is on this machine.

    Cog's server alone is busy only when every place is taken. If nothing is computed then, the places are lost.
    """
    told = found.get("seconds_without_progress")
    if isinstance(told, int | float):
        return float(told)
    folders = list(held_folders(Path(tempfile.gettempdir())))
    silent = silent_seconds(folders)
    if silent is None and found["status"] == "BUSY":
        silent = idle_seconds(folders)
    return silent or 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the status; gives 0 for a server that can take predictions, else 1."""
    parser = CommandParser(
        "scripts/healthcheck",
        description="Whether a server can take predictions.",
        epilog=f"Exit status: 0 it can, 1 it cannot, makes no progress, or does not answer within {TIMEOUT:.0f} s.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="the server's address (%(default)s)")
    parser.add_argument(
        "--stall",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="without progress of a prediction, after which the server counts as unable (%(default)s)",
    )
    options = parser.parse_args(arguments)
    found = health(options.url)
    silent = without_progress(found) if found["status"] in ABLE else 0.0
    stalled = silent > options.stall
    print(f"{found['status']}, no progress for {silent:.0f} s" if stalled else found["status"])
    return 0 if found["status"] in ABLE and not stalled else FAILED
