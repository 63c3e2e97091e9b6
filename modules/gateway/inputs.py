"""Checks the inputs of a request as the worker would, before Cog's server sees them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from modules.gateway.fetcher import Fetcher
from modules.gateway.pictures import decode, encode, is_data_url

if TYPE_CHECKING:
    from modules.input_checks import InputChecks

MAX_BYTES = 64 * 2**20
"""Of all pictures of a request, which the worker gets as ``data:`` URLs."""


class InputValidator:
    """Accepts inputs that the worker can honour. ``checks`` is None until a worker has said what it has; then only
    the schema counts. One request is checked at a time, so that a few large pictures do not fill the memory."""

    def __init__(self, schema: InputSchema, fetcher: Fetcher, scratch: Path) -> None:
        self.checks: InputChecks | None = None
        self._schema, self._fetcher, self._scratch = schema, fetcher, scratch
        self._one_at_a_time = asyncio.Semaphore(1)

    async def validated(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs to pass on: without those that are null, and with every picture as a ``data:`` URL.

        Raises :class:`InputError`.
        """
        inputs = {
            name: value for name, value in given.items() if value is not None or name not in self._schema.properties
        }
        self._check_values(inputs)
        pictures = await self._contents(inputs)
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
        pictures: dict[str, Any] = {name: Path() for name in self._schema.files if isinstance(inputs.get(name), str)}
        for name in self._schema.file_lists:
            given = inputs.get(name)
            if isinstance(given, list):
                pictures[name] = [Path() if isinstance(one, str) and _is_unicode(one) else one for one in given]
        self._schema.validate({**inputs, **pictures})

    async def _content(self, name: str, url: str) -> bytes:
        if is_data_url(url):
            return await asyncio.to_thread(decode, name, url)
        if url[:8].lower().startswith(("http://", "https://")):
            return await self._fetcher.fetch(name, url)
        raise InputError(name, "must be sent as a data: URL, or be the http(s) address of a picture")

    async def _contents(self, inputs: Mapping[str, Any]) -> list[tuple[str, bytes]]:
        """Every picture of the inputs, with the name of its input."""
        urls = [(name, 0, inputs[name]) for name in self._schema.files if name in inputs]
        for name in self._schema.file_lists:
            urls += [(name, number, url) for number, url in enumerate(inputs.get(name, ()), 1)]
        pictures: list[tuple[str, bytes]] = []
        for name, number, url in urls:
            try:
                pictures.append((name, await self._content(name, url)))
                if sum(len(content) for _, content in pictures) > MAX_BYTES:
                    raise InputError(name, f"the pictures have more than {MAX_BYTES // 2**20} MiB; make them smaller")
            except InputError as error:
                raise error.of_item(number) if number else error from None
        return pictures

    def _check_all(self, inputs: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
        """The pictures as ``data:`` URLs, after the request has been made as the worker makes it."""
        if self.checks is not None:
            with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                files = [(name, Path(folder) / str(number)) for number, (name, _) in enumerate(pictures)]
                for (_, file), (_, content) in zip(files, pictures, strict=True):
                    file.write_bytes(content)
                self.checks.request({**inputs, **self._by_name(files)})
        return self._by_name([(name, encode(content)) for name, content in pictures])

    def _by_name(self, values: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """The value of every input, of a list all of them."""
        lists = {name: [one for of, one in values if of == name] for name in self._schema.file_lists}
        return dict(values) | {name: listed for name, listed in lists.items() if listed}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
