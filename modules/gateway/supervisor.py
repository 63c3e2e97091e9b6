"""Keeps a Cog server running: starts it, watches it, and starts it again when it has died or makes no progress."""

from __future__ import annotations

import asyncio
import importlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import aiohttp

from backend.core.errors import UserError
from modules.gateway.cog_server import CogOptions, CogServer
from modules.gateway.inputs import InputValidator
from modules.gateway.predictions import Predictions

logger = logging.getLogger(__name__)

STARTING, READY, BUSY, SETUP_FAILED, UNHEALTHY = "STARTING", "READY", "BUSY", "SETUP_FAILED", "UNHEALTHY"
POLL_STARTING, POLL_READY = 0.1, 1.0
"""Seconds between two looks at the server."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a server is started again; doubled as long as it dies within ``STEADY`` seconds."""
STEADY = 300.0
MUTE_SECONDS = 60.0
"""After so long without an answer to its health check a server counts as dead."""
DEAD = "the worker process has ended"
_SLOW = "timed out"
"""In the error of a worker that lives, but is too busy to answer."""


class SetupFailedError(UserError):
    """The worker's set-up has failed; starting it again would fail again."""


class Supervisor:
    """The server's state, for the health check and for those who want to send it something."""

    def __init__(
        self, options: CogOptions, scratch: Path, predictions: Predictions, inputs: InputValidator, stall_seconds: float
    ) -> None:
        self.health: dict[str, Any] = {"status": STARTING}
        """The last answer of the server's health check."""
        self.restarts = 0
        self._options, self._scratch, self._predictions, self._inputs = options, scratch, predictions, inputs
        self._stall_seconds = stall_seconds
        self._ready_at = 0.0
        self._server: CogServer | None = None

    @property
    def ready(self) -> bool:
        return self.health["status"] in (READY, BUSY) and not self._predictions.worker_died.is_set()

    def silent_seconds(self) -> float:
        """Seconds since the last progress of the running predictions; 0 where none runs."""
        running = self._predictions.running.values()
        if not running or self._server is None:
            return 0.0
        since_begin = time.monotonic() - min(one.began for one in running)
        silent = self._server.silent_seconds()
        return since_begin if silent is None else min(since_begin, silent)

    async def run(self) -> None:
        """Until it is cancelled. Raises :class:`SetupFailedError`."""
        pause = FIRST_PAUSE
        async with aiohttp.ClientSession() as session:
            while True:
                self.health, self._ready_at = {"status": STARTING}, 0.0
                folder = self._scratch / f"cog-{self.restarts}"
                self._server = await CogServer.start(self._options, folder)
                self._predictions.url = self._server.url
                self._predictions.worker_died.clear()
                try:
                    # what takes long to import, while the worker sets up
                    await asyncio.to_thread(importlib.import_module, "modules.input_checks")
                    reason = await self._watch(self._server, session)
                except asyncio.CancelledError:
                    await self._server.stop()
                    raise
                finally:
                    self.health = {**self.health, "status": STARTING}
                    await self._server.kill()
                    shutil.rmtree(folder, ignore_errors=True)
                steady = self._ready_at and time.monotonic() - self._ready_at > STEADY
                pause = FIRST_PAUSE if steady else pause
                logger.error("%s; it is started again in %.0f s", reason, pause)
                self.restarts += 1
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _watch(self, server: CogServer, session: aiohttp.ClientSession) -> str:
        """Why the server has to be started again. Raises :class:`SetupFailedError`."""
        ended = asyncio.ensure_future(server.process.wait())
        died = asyncio.ensure_future(self._predictions.worker_died.wait())
        answered = time.monotonic()
        try:
            while True:
                await asyncio.wait(
                    {ended, died},
                    timeout=POLL_READY if self.ready else POLL_STARTING,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if ended.done():
                    return f"Cog's server has ended with status {ended.result()}"
                if died.done():
                    return DEAD
                if (silent := self.silent_seconds()) > self._stall_seconds:
                    return f"a prediction has made no progress for {silent:.0f} s"
                try:
                    health = await server.health(session)
                    answered = time.monotonic()
                except (aiohttp.ClientError, TimeoutError):
                    if self.ready and time.monotonic() - answered > MUTE_SECONDS:
                        return f"Cog's server has not answered for {MUTE_SECONDS:.0f} s"
                    continue
                if problem := self._problem(health):
                    return problem
                if not self.ready and health["status"] in (READY, BUSY):
                    self._is_ready(server)
                if health["status"] != UNHEALTHY:  # else it is only too busy to answer
                    self.health = health
        finally:
            ended.cancel()
            died.cancel()

    def _is_ready(self, server: CogServer) -> None:
        from modules.input_checks import InputChecks

        installed = server.installed()
        self._inputs.checks = InputChecks.of(installed) if installed else None
        self._ready_at = time.monotonic()

    def _problem(self, health: dict[str, Any]) -> str:
        """Why a server with this health has to be started again, "" where it has not."""
        status, error = health["status"], health.get("user_healthcheck_error", "")
        if status == SETUP_FAILED:
            raise SetupFailedError(f"the set-up failed: {_reason(health.get('setup', {}).get('logs', ''))}")
        if status in ("DEFUNCT", UNHEALTHY) and _SLOW not in error:
            return DEAD
        return ""


def _reason(logs: str) -> str:
    """The last line of the set-up's log, without what Cog's server writes before the exception."""
    lines = [line for line in logs.splitlines() if line.strip()]
    return lines[-1].rpartition("etup failed: ")[2].strip() if lines else "it has written no reason"
