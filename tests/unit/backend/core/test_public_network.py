"""Which addresses belong to the internet."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from backend.core.public_network import PrivateAddressError, PublicResolver, is_public, literal_address


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
    ],
)  # fmt: skip
def test_other_addresses_are_not_also_where_they_are_wrapped(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("fe80::1%eth0", "fe80::1"), ("a.example", "")]
)
def test_a_host_may_be_an_address(host: str, address: str) -> None:
    assert literal_address(host) == address


class Answers(AbstractResolver):
    """A resolver that gives one address after the other."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0)
        return [ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def test_every_answer_of_the_resolver_is_checked() -> None:
    async def twice() -> None:
        resolver = PublicResolver(Answers("8.8.8.8", "127.0.0.1"))
        assert [one["host"] for one in await resolver.resolve("a.example")] == ["8.8.8.8"]
        with pytest.raises(PrivateAddressError):
            await resolver.resolve("a.example")

    asyncio.run(twice())
