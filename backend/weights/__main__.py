"""``python -m backend.weights MODEL FOLDER``: downloads one model of the manifest into a folder of weights.

A server starts it, which talks to no hub itself. People use ``scripts/fetch-weights``, which can do more.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from backend.core.errors import UserError
from backend.weights.catalog import choose_files
from backend.weights.downloader import fetch

logger = logging.getLogger(__name__)

JOBS = 4


def main(model: str, folder: Path) -> int:
    """Gives 0 when every file is installed, else 1; each file has a line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    failed = 0
    try:
        for outcome in fetch(choose_files((model,)), folder, JOBS):
            failed += bool(outcome.problem)
            logger.info("%s", outcome.line)
    except UserError as error:
        logger.error("error: %s", error)
        failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
