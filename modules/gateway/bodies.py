"""Reads the JSON body of a request, within limits of size, time and memory that hold while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from backend.core.texts import json_from
from modules.gateway.refusal import Refusal, Unavailable

MAX_BYTES = 48 * 2**20
"""Of one body: 36 MB of picture files as ``data:`` URLs."""
MAX_HELD_BYTES = 8 * MAX_BYTES
"""Of all bodies that are being read or checked at a time."""
PATIENCE = 8.0
"""Seconds that any body may take; a large one has a second more for every ``SLOWEST`` bytes."""
SLOWEST = 100_000
_RETRY_SECONDS = 5


class Bodies:
    """Reads bodies, and knows how many bytes they hold together."""

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def json(self, request: web.Request) -> AsyncIterator[Any]:
        """The parsed body; an empty one is ``{}``. Its bytes count until the block ends.

        Raises :class:`Refusal` for a body that is too large, too slow or no JSON, and :class:`Unavailable` where other
        bodies hold too much.
        """
        content = bytearray()
        try:
            await self._read(request, content)
            yield await asyncio.to_thread(_parsed, content) if content else {}
        finally:
            self._held -= len(content)
            content.clear()  # the error of a refused body still knows it

    async def _read(self, request: web.Request, content: bytearray) -> None:
        if (request.content_length or 0) > MAX_BYTES:
            raise _too_large()
        if request.body_exists and (
            request.content_type != "application/json" or "Content-Encoding" in request.headers
        ):
            raise Refusal(415, "must be JSON, with the header Content-Type: application/json and no Content-Encoding")
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(begin + PATIENCE + len(content) / SLOWEST):
                    chunk = await request.content.readany()
            except TimeoutError:
                raise Refusal(408, "arrives too slowly; send it again", close=True) from None
            except (HttpProcessingError, web.RequestPayloadError):
                raise Refusal(400, "cannot be read; its length or its chunks are wrong", close=True) from None
            if not chunk:
                return
            if len(content) + len(chunk) > MAX_BYTES:
                raise _too_large()
            if self._held + len(chunk) > MAX_HELD_BYTES:
                raise Unavailable(503, "Too many large requests arrive at once; send the request again", _RETRY_SECONDS)
            content += chunk
            self._held += len(chunk)


def _too_large() -> Refusal:
    return Refusal(413, f"is larger than {MAX_BYTES // 2**20} MiB; send smaller pictures", close=True)


def _parsed(content: bytearray) -> Any:
    try:
        return json_from(content.decode(), finite=True)
    except UnicodeDecodeError:
        raise Refusal(400, "is no text in UTF-8") from None
    except ValueError as problem:
        raise Refusal(400, str(problem)) from None
