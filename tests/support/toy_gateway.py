"""A predictor that does what its prompt says, behind the real gateway and Cog's real server:
``python -m support.toy_gateway PORT STALL_SECONDS GRACE_SECONDS``. It starts in a second."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path as File
from typing import Optional

from cog import BasePredictor, Input, Path
from PIL import Image

from backend.core.cancel_file import canceled_by_file
from backend.core.parent import end_with_parent
from modules.compat import server_folder


class Predictor(BasePredictor):
    """Waits, as one prediction after the other."""

    def setup(self) -> None:
        if "TOY_SETUP_FAILS" in os.environ:
            raise RuntimeError("the toy has no battery")
        end_with_parent()
        self.turn = asyncio.Lock()

    async def predict(
        self,
        prompt: str = Input(description="wait, die, hang or look."),
        seconds: float = Input(default=0.0, ge=0, le=100, description="How long to wait."),
        images: Optional[list[Path]] = Input(default=None, description="What to look at."),  # noqa: UP045, B008
    ) -> list[Path]:
        async with canceled_by_file(server_folder()), self.turn:
            if prompt == "die":
                os._exit(3)
            if prompt == "hang":
                time.sleep(1000)  # blocks the whole worker
            if prompt == "look":
                raise ValueError(f"seen: {[Image.open(file).size for file in images or ()]}")
            await asyncio.sleep(seconds)
        return []


def main() -> None:
    import logging

    from backend.core.errors import UserError
    from backend.core.scratch import scratch_folder
    from modules.cli.serve import listener
    from modules.gateway.app import Gateway, GatewayOptions
    from modules.gateway.cog_server import CogOptions

    logging.basicConfig(level=logging.INFO)
    port, stall, grace = sys.argv[1:]
    options = GatewayOptions(CogOptions(File(__file__), 4), float(grace), float(stall))
    with scratch_folder() as scratch:
        try:
            asyncio.run(Gateway(options, scratch).serve(listener("127.0.0.1", int(port))))
        except UserError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
