"""Fetches pictures from http(s) addresses that clients name: with limits, and not from private networks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from backend.core.errors import InputError
from backend.core.public_network import PrivateAddressError, PublicResolver, has_cause, is_public, literal_address
from backend.core.version import name_and_version

MAX_BYTES = 32 * 2**20
SECONDS = 8.0
"""For everything: look-up, redirects, download."""
MAX_REDIRECTS = 3


class Fetcher:
    """Fetches one picture at a time or several. ``private`` allows addresses of private networks."""

    def __init__(self, private: bool = False) -> None:
        self._private = private

    async def fetch(self, field: str, url: str) -> bytes:
        """The content at an address. Raises :class:`InputError`, which says nothing about what is in the network."""
        options: Mapping[str, Any] = {} if self._private else {"resolver": PublicResolver()}
        try:
            async with (
                asyncio.timeout(SECONDS),
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(force_close=True, use_dns_cache=False, **options),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"User-Agent": name_and_version().replace(" ", "/")},
                ) as session,
            ):
                return await self._follow(session, field, url)
        except TimeoutError:
            raise InputError(field, f"its address does not send it within {SECONDS:.0f} seconds") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if has_cause(error, PrivateAddressError):
                raise _private(field) from None
            raise InputError(field, "cannot be fetched from its address; send it as a data: URL") from None

    async def _follow(self, session: aiohttp.ClientSession, field: str, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            self._check(field, url)
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    url = urljoin(url, answer.headers["Location"])
                    continue
                if answer.status != 200:
                    raise InputError(field, f"its address answers {answer.status}, not 200")
                content = bytearray()
                async for chunk in answer.content.iter_any():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise InputError(field, f"is larger than {MAX_BYTES // 2**20} MiB; make it smaller")
                return bytes(content)
        raise InputError(field, f"its address redirects more than {MAX_REDIRECTS} times")

    def _check(self, field: str, url: str) -> None:
        """Raises :class:`InputError` for what the resolver does not see: the scheme, and a literal IP address."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(field, "must be a data: URL, or the http(s) address of a picture")
        literal = literal_address(parts.hostname)
        if literal and not self._private and not is_public(literal):
            raise _private(field)


def _private(field: str) -> InputError:
    return InputError(
        field, "its address is in a private network, from which this server fetches nothing; send it as a data: URL"
    )
