"""Checks the inputs of a request as the worker would, before Cog's server sees them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from modules.gateway.fetcher import Fetcher
from modules.gateway.pictures import PREFIX, decode, encode

if TYPE_CHECKING:
    from modules.input_checks import InputChecks


class InputValidator:
    """Accepts inputs that the worker can honour. ``checks`` is None until a worker has said what it has; then only
    the schema counts. One request is checked at a time, so that a few large pictures do not fill the memory."""

    def __init__(self, schema: InputSchema, fetcher: Fetcher, scratch: Path) -> None:
        self.checks: InputChecks | None = None
        self._schema, self._fetcher, self._scratch = schema, fetcher, scratch
        self._pictures = [name for name, prop in schema.properties.items() if prop.get("format") == "uri"]
        self._one_at_a_time = asyncio.Semaphore(1)

    async def validated(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs to pass on: without those that are null, and with every picture as a ``data:`` URL.

        Raises :class:`InputError`.
        """
        inputs = {
            name: value for name, value in given.items() if value is not None or name not in self._schema.properties
        }
        self._check_values(inputs)
        pictures = {name: await self._content(name, inputs[name]) for name in self._pictures if name in inputs}
        async with self._one_at_a_time:
            encoded = await asyncio.to_thread(self._check_all, inputs, pictures)
        return {**inputs, **encoded}

    def _check_values(self, inputs: Mapping[str, Any]) -> None:
        """Types, ranges and names, which cost nothing."""
        unknown = next((name for name in inputs if name not in self._schema.properties), None)
        if unknown is not None:  # alone, because there may be 100,000
            self._schema.validate({unknown: None})
        for name, value in inputs.items():
            if isinstance(value, str) and not _is_unicode(value):
                raise InputError(name, "has half of a surrogate pair, which is no text; leave it out")
        pictures = {name: Path() for name in self._pictures if isinstance(inputs.get(name), str)}
        self._schema.validate({**inputs, **pictures})

    async def _content(self, name: str, url: str) -> bytes:
        if url.startswith(PREFIX):
            return await asyncio.to_thread(decode, name, url)
        if url.startswith(("http://", "https://")):
            return await self._fetcher.fetch(name, url)
        raise InputError(name, "must be sent as a data: URL, or be the http(s) address of a picture")

    def _check_all(self, inputs: Mapping[str, Any], pictures: Mapping[str, bytes]) -> dict[str, str]:
        """The pictures as ``data:`` URLs, after the request has been made as the worker makes it."""
        if self.checks is not None:
            with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                files = {name: Path(folder) / name for name in pictures}
                for name, file in files.items():
                    file.write_bytes(pictures[name])
                self.checks.request({**inputs, **files})
        return {name: encode(content) for name, content in pictures.items()}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
