"""Pictures from addresses that clients name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.background import serve_in_background

from backend.core.errors import InputError
from modules.gateway import fetcher
from modules.gateway.fetcher import Fetcher


@contextmanager
def site(status: int = 200, body: bytes = b"picture", **headers: str) -> Iterator[str]:
    """A server on loopback that always answers the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = serve_in_background(server)
        yield f"http://127.0.0.1:{server.server_address[1]}/x.png"
        server.shutdown()
        thread.join()


def refusal(url: str, private: bool = False) -> str:
    with pytest.raises(InputError) as refused:
        asyncio.run(Fetcher(private).fetch("image", url))
    assert refused.value.field == "image"
    return refused.value.problem


def test_nothing_is_fetched_from_this_machine_under_whatever_name() -> None:
    with site() as url:
        port = url.split(":")[2]
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"):
            assert refusal(f"http://{host}:{port}").startswith(("its address is in a private", "cannot be fetched"))


def test_it_is_where_that_is_allowed() -> None:
    with site() as url:
        assert asyncio.run(Fetcher(private=True).fetch("image", url)) == b"picture"


def test_redirects_are_followed_a_few_times_and_checked_each_time() -> None:
    with site() as target, site(302, Location=target) as url:
        assert asyncio.run(Fetcher(private=True).fetch("image", url)) == b"picture"
    with site(302, Location="file:///etc/passwd") as url:
        assert "http(s)" in refusal(url, private=True)
    with site(302, Location="/again") as url:
        assert "redirects more than" in refusal(url, private=True)


def test_what_is_too_large_too_slow_or_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with site(404) as url:
        assert "answers 404" in refusal(url, private=True)
    monkeypatch.setattr(fetcher, "MAX_BYTES", 100)
    with site(body=b"x" * 101) as url:
        assert "is larger than" in refusal(url, private=True)
    monkeypatch.setattr(fetcher, "SECONDS", 0.2)
    with site(body=b"x", **{"Content-Length": "50"}) as url:
        assert refusal(url, private=True)
    assert "cannot be fetched" in refusal("http://127.0.0.1:9/x", private=True)


@pytest.mark.parametrize("url", ["http://", "http:///x", "https://:80/", "http://a b/", "http://[x]/"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    assert refusal(url)
