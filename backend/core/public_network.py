"""Connections to the internet, and to nothing else: a name is looked up once, its addresses are checked, and the
connection goes to one of those.

So neither a name of a private network nor one that is looked up anew, with another answer (DNS rebinding), leads to
this machine or its neighbours.
"""

from __future__ import annotations

import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

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


def literal_address(host: str) -> str:
    """The IP address that a host of a URL is, "" for a name. A resolver never sees such hosts."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return ""


def has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error of aiohttp comes from one of this kind."""
    while error is not None:
        if isinstance(error, kind) or isinstance(getattr(error, "os_error", None), kind):
            return True
        error = error.__cause__ or error.__context__
    return False


class PublicResolver(AbstractResolver):
    """Looks names up by ``resolver`` and refuses those of private networks. The connection goes to the address that was
    checked."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(one["host"]) for one in found):
            raise PrivateAddressError(0, "private address")
        return found

    async def close(self) -> None:
        await self._resolver.close()
