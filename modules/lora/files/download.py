"""Downloads from the hosts of LoRA files: encrypted, from public addresses only, within limits of size and time.

A token goes to its own host and to no other, also after a redirect. Errors never quote an address beyond its host,
because addresses of files are often signed.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from re import Pattern
from typing import Any, BinaryIO, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from backend.core.cancellation import Check
from backend.core.data_files import DataError, parse_json
from backend.core.public_network import PrivateAddressError, PublicResolver, has_cause, literal_address
from backend.core.texts import shortened
from backend.core.units import format_bytes
from backend.core.version import name_and_version

REDIRECTS = (301, 302, 303, 307, 308)
CHECK_SECONDS = 0.1
"""Between two looks at whether the download is still wanted."""

OnProgress = Callable[[int, int], None]
MakeRoom = Callable[[int], None]
T = TypeVar("T")


class DownloadError(Exception):
    """Why nothing came, in words that follow "its host"; ``status`` is the answer of HTTP, 0 for none."""

    def __init__(self, problem: str, status: int = 0) -> None:
        super().__init__(problem)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of one download.

    Attributes:
        file_bytes, text_bytes: The largest file, and the largest answer in JSON.
        unknown_bytes: What room is made for where the host does not say how large a file is.
        seconds: For everything, from the first look-up on.
        patience: Seconds without a byte; a transfer also has so many before its speed counts.
        slowest: Bytes a second that it must have on the average.
        redirects: How many are followed.
    """

    file_bytes: int = 4 * 2**30
    text_bytes: int = 2**22
    unknown_bytes: int = 2**30
    seconds: float = 1800.0
    patience: float = 20.0
    slowest: int = 100_000
    redirects: int = 5


@dataclass(frozen=True)
class Network:
    """How hosts are found and known. Tests give one that finds a hub of their own."""

    resolver: Callable[[], AbstractResolver] = PublicResolver
    tls: ssl.SSLContext | bool = True


@dataclass(frozen=True)
class Place:
    """What is downloaded. ``hosts`` are those that it may come from; ``token`` is sent to ``token_host`` alone."""

    url: str
    hosts: Pattern[str]
    token_host: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Downloader:
    """Downloads one thing after the other, in a thread without an event loop.

    ``check`` is called all the time and ends a download by raising. Raises :class:`DownloadError`.
    """

    network: Network
    limits: Limits
    check: Check

    def json(self, place: Place) -> Any:
        """The object in an answer in JSON."""
        return self._run(self._json(place))

    def save(self, place: Place, file: BinaryIO, make_room: MakeRoom, on_progress: OnProgress) -> str:
        """Writes the bytes into ``file`` and returns the name that the host gives them, "" for none. ``make_room`` is
        called with their number, once it is known, and may raise. Raises also OSError, for a full disk."""
        return self._run(self._save(place, file, make_room, on_progress))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run(self._watched(work))
        except (aiohttp.ClientError, HttpProcessingError) as error:
            raise DownloadError(_in_words(error)) from None
        except TimeoutError:
            raise DownloadError(f"does not send it within {self.limits.seconds:.0f} seconds") from None

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which ends when ``check`` raises or the time is over."""
        task = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(self.limits.seconds):
                while not task.done():
                    self.check()
                    await asyncio.wait({task}, timeout=CHECK_SECONDS)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _json(self, place: Place) -> Any:
        content = bytearray()
        async with self._answer(place) as answer:
            async for chunk in answer.content.iter_any():
                content += chunk
                if len(content) > self.limits.text_bytes:
                    raise DownloadError("sends more than a description of a model has")
        try:
            return parse_json(bytes(content))
        except DataError:
            raise DownloadError("does not describe the model in JSON") from None

    async def _save(self, place: Place, file: BinaryIO, make_room: MakeRoom, on_progress: OnProgress) -> str:
        limits = self.limits
        async with self._answer(place) as answer:
            if answer.content_type == "text/html":
                raise DownloadError("answers with a page in place of the file; it may ask for a token", 401)
            size = answer.content_length or 0
            if size > limits.file_bytes:
                raise _too_large(size, limits)
            make_room(size or limits.unknown_bytes)
            begin, received = time.monotonic(), 0
            async for chunk in answer.content.iter_any():
                received += len(chunk)
                if received > limits.file_bytes:
                    raise _too_large(received, limits)
                if time.monotonic() - begin > limits.patience + received / limits.slowest:
                    raise DownloadError("sends it too slowly; try again later")
                file.write(chunk)
                on_progress(received, size)
            disposition = answer.content_disposition
            return (disposition.filename or "") if disposition else ""

    @asynccontextmanager
    async def _answer(self, place: Place) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer after all redirects, of status 200."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.limits.patience, sock_read=self.limits.patience)
        connector = aiohttp.TCPConnector(
            force_close=True, use_dns_cache=False, resolver=self.network.resolver(), ssl=self.network.tls
        )
        headers = {"User-Agent": name_and_version().replace(" ", "/"), "Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=timeout,
            auto_decompress=False,
        ) as session:
            url = URL(place.url)
            for _ in range(self.limits.redirects + 1):
                _check_host(url, place.hosts)
                own = {"Authorization": f"Bearer {place.token}"} if place.token and url.host == place.token_host else {}
                async with session.get(url, allow_redirects=False, headers=own) as answer:
                    if answer.status in REDIRECTS and "Location" in answer.headers:
                        url = _joined(url, answer.headers["Location"])
                        continue
                    _check_answer(answer)
                    yield answer
                    return
            raise DownloadError(f"redirects more than {self.limits.redirects} times")


def _joined(url: URL, location: str) -> URL:
    try:
        return url.join(URL(location))
    except ValueError:
        raise DownloadError("redirects to what is no address") from None


def _check_host(url: URL, hosts: Pattern[str]) -> None:
    """Before every connection: the one that aiohttp makes is to this host, because it reads the same object."""
    host = url.host or ""
    if url.scheme != "https" or url.port != 443 or url.user is not None or url.password is not None:
        raise DownloadError("leads to an address that is not plain https")
    if literal_address(host) or not hosts.fullmatch(host):
        raise DownloadError(f"leads to '{shortened(host)}', from which nothing is fetched")


def _check_answer(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        raise DownloadError(f"answers {answer.status}", answer.status)
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError("sends it compressed, which nobody asked for")


def _too_large(size: int, limits: Limits) -> DownloadError:
    return DownloadError(f"sends {format_bytes(size)} or more; at most {format_bytes(limits.file_bytes)} are read")


def _in_words(error: Exception) -> str:
    """What went wrong, without addresses."""
    if has_cause(error, PrivateAddressError):
        return "leads to a private network, from which nothing is fetched"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "is not known; check its name and the network"
    if isinstance(error, aiohttp.ClientSSLError):
        return "has no certificate that is trusted"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return "does not answer; try again later"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "sends less than it said; try again"
    if isinstance(error, aiohttp.ClientConnectionError):
        return f"breaks the connection off ({type(error).__name__}); try again later"
    return f"answers what is no HTTP ({type(error).__name__})"
