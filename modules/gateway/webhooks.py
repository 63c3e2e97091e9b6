"""Passes the webhooks of Cog's server on to their receivers.

Cog's server sends them here, so that the last one is not lost when that server ends or is ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

logger = logging.getLogger(__name__)

FINISHED = ("succeeded", "failed", "canceled")
TRIES = 12
"""How often a last webhook is sent until it is received, with growing pauses, as Cog does."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
SECONDS = 30.0
"""For one answer of a receiver."""
MISSING_SECONDS = 10.0
"""After the end of a prediction, until its last webhook is given up that Cog's server has not sent."""
_PASSED_ON = ("Authorization", "Content-Type", "User-Agent", "traceparent", "tracestate")


@dataclass
class _Hook:
    url: str
    wants_last: bool
    queue: asyncio.Queue[tuple[bytes, Mapping[str, str], bool]] = field(default_factory=asyncio.Queue)
    has_last: asyncio.Event = field(default_factory=asyncio.Event)


class Webhooks:
    """One loopback address to which Cog's server sends everything, and a queue for each prediction."""

    def __init__(self) -> None:
        self._hooks: dict[str, _Hook] = {}
        self._senders: set[asyncio.Task[None]] = set()
        self._url = ""

    async def start(self) -> None:
        """Opens the loopback address."""
        app = web.Application(client_max_size=0)
        app.router.add_post("/{key}", self._receive)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS))

    def open(self, url: str, events: tuple[str, ...]) -> str:
        """The address to give to Cog's server in place of ``url``."""
        key = secrets.token_urlsafe(16)
        hook = self._hooks[key] = _Hook(url, "completed" in events)
        sender = asyncio.create_task(self._send(hook))
        self._senders.add(sender)
        sender.add_done_callback(self._senders.discard)
        return f"{self._url}/{key}"

    def close(self, address: str, instead: Mapping[str, Any] | None = None) -> None:
        """The prediction has ended. ``instead`` is sent as the last webhook where Cog's server cannot send it."""
        hook = self._hooks[address.rpartition("/")[2]]
        if not hook.wants_last:
            self._put_last(hook, b"", {})
        elif instead is not None:
            self._put_last(hook, json.dumps(instead).encode(), {"Content-Type": "application/json"})
        task = asyncio.create_task(self._forget(address.rpartition("/")[2], hook))
        self._senders.add(task)
        task.add_done_callback(self._senders.discard)

    async def stop(self, seconds: float) -> None:
        """Waits until the last webhooks are sent, at most so long, and closes the address."""
        if self._senders:
            await asyncio.wait(set(self._senders), timeout=seconds)
        for task in self._senders:
            task.cancel()
        await self._session.close()
        await self._runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        hook = self._hooks.get(request.match_info["key"])
        if hook is None:
            return web.Response(status=404)
        content = await request.read()
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        payload = await asyncio.to_thread(json.loads, content)
        if payload["status"] in FINISHED:
            self._put_last(hook, content, headers)
        elif not hook.has_last.is_set():
            hook.queue.put_nowait((content, headers, False))
        return web.Response()

    def _put_last(self, hook: _Hook, content: bytes, headers: Mapping[str, str]) -> None:
        if not hook.has_last.is_set():
            hook.has_last.set()
            hook.queue.put_nowait((content, headers, True))

    async def _forget(self, key: str, hook: _Hook) -> None:
        try:
            await asyncio.wait_for(hook.has_last.wait(), MISSING_SECONDS)
        except TimeoutError:
            self._put_last(hook, b"", {})
        del self._hooks[key]

    async def _send(self, hook: _Hook) -> None:
        while True:
            content, headers, last = await hook.queue.get()
            pause = FIRST_PAUSE
            for _ in range(TRIES if last else 1):
                if not content or await self._delivered(hook.url, content, headers):
                    break
                if last:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            if last:
                return

    async def _delivered(self, url: str, content: bytes, headers: Mapping[str, str]) -> bool:
        """Whether there is no reason to send it again."""
        try:
            async with self._session.post(url, data=content, headers=headers) as answer:
                return answer.status not in (429, 500, 502, 503, 504)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            logger.warning("a webhook could not be sent (%s)", type(error).__name__)
            return False
