"""Fetches pictures from http(s) addresses that clients name: with limits, and not from private networks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from backend.core.errors import InputError
from backend.core.version import name_and_version

MAX_BYTES = 32 * 2**20
SECONDS = 8.0
"""For everything: look-up, redirects, download."""
MAX_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """An address of this machine or of a private network."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet, also where it is wrapped in an IPv6 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class PublicResolver(AbstractResolver):
    """Looks names up and refuses those of private networks. The connection goes to the address that was checked."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(one["host"]) for one in found):
            raise PrivateAddressError(0, "private address")
        return found

    async def close(self) -> None:
        await self._resolver.close()


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
            if _has_cause(error, PrivateAddressError):
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
        try:
            literal = ipaddress.ip_address(parts.hostname.partition("%")[0])
        except ValueError:
            return
        if not self._private and not is_public(str(literal)):
            raise _private(field)


def _private(field: str) -> InputError:
    return InputError(
        field, "its address is in a private network, from which this server fetches nothing; send it as a data: URL"
    )


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind) or isinstance(getattr(error, "os_error", None), kind):
            return True
        error = error.__cause__ or error.__context__
    return False
