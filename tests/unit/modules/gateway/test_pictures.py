"""``data:`` URLs."""

from __future__ import annotations

import base64
import urllib.request

import pytest

from backend.core.errors import InputError
from modules.gateway.pictures import decode, encode

CONTENT = bytes(range(256))
BASE64 = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image/png;name=x.png;base64,{BASE64.replace('+', '%2B').replace('=', '%3D')}",
        f"DATA:image/png;BASE64,{BASE64}",
        f"data:image/png;base64, {base64.encodebytes(CONTENT).decode()}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in CONTENT),
    ],
)
def test_all_ways_to_write_one_are_read(url: str) -> None:
    assert decode("image", url) == CONTENT


@pytest.mark.parametrize(
    "url", ["data:", "data:x", "data:,", "data:;base64,", "data:;base64,!", "data:;base64,Y", "data:;base64,é"]
)
def test_others_are_refused_by_name(url: str) -> None:
    with pytest.raises(InputError, match="^image: "):
        decode("image", url)


def test_what_is_passed_on_is_read_as_the_same() -> None:
    assert decode("image", encode(CONTENT)) == CONTENT
    with urllib.request.urlopen(encode(CONTENT)) as opened:  # as Cog's worker reads it
        assert opened.read() == CONTENT
