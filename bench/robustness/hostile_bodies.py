"""Bodies that somebody sends to break a server: ids, names, nulls, sizes, shapes, texts, pictures, nesting."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from PIL import Image

SMALL: Mapping[str, Any] = {
    "prompt": "a portrait of a man",
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "scale": 1,
    "adetailer": False,
}
"""A right request that takes a fraction of a second."""


IDS: tuple[object, ...] = ("i" * 300, "../../x", "/tmp/x", "..", "", "a/b", "a\0b", "\n", "é", " ", 7, [], {}, True)
NAMES = ("promt", "Prompt", "prompt ", "__class__", "self", "", "x" * 5000, "width\0", "../x")
KEYS = ("inputs", "output_file_prefix", "context", "created_at", "webhok", "version", "x" * 5000)
HOOKS = ("ftp://x", "file:///etc/passwd", "javascript:1", "http://", "http://[::1", "x", 5, "http://" + "x" * 5000)
URLS = (
    *("file:///etc/passwd", "/etc/passwd", "gopher://x", "data:", "data:,", "http://", "http://127.0.0.1:9/"),
    *("http://[::ffff:127.0.0.1]/", "http://2130706433/", "http://localhost:22/", "http://169.254.169.254/latest/"),
)


def picture(size: tuple[int, int], mode: str = "1", kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return data_url(file.getvalue())


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png_that_claims(width: int, height: int) -> str:
    """A PNG of a few bytes whose header names this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return data_url(b"\x89PNG\r\n\x1a\n" + content)


def _inputs(**changes: Any) -> dict[str, Any]:
    return {"input": {**SMALL, **changes}}


@cache
def light_bodies() -> dict[str, bytes]:
    """Of at most a few kilobytes, by what is wrong with them. None of them is a right request."""
    bodies: dict[str, Any] = {f"id {value!r:.20}": {"id": value, **_inputs()} for value in IDS}
    bodies |= {f"name {name!r:.20}": _inputs(**{name: 1}) for name in NAMES}
    bodies |= {f"name {name!r:.20} null": _inputs(**{name: None}) for name in NAMES}
    bodies |= {f"key {key:.20}": {**_inputs(), key: {"a": 1}} for key in KEYS}
    bodies |= {f"webhook {hook!r:.20}": {**_inputs(), "webhook": hook} for hook in HOOKS}
    bodies |= {"events": {**_inputs(), "webhook": "http://127.0.0.1:9/", "webhook_events_filter": ["all"]}}
    nulls = [{"input": None}, {"input": {"prompt": None}}, {"id": None}, None]
    bodies |= {f"null {number}": body for number, body in enumerate(nulls)}
    sizes: list[dict[str, Any]] = [
        {"aspect_ratio": "custom", "width": 10**9, "height": 256},
        {"aspect_ratio": "custom", "width": 256, "height": 1e308},
        {"scale": 1e9},
        {"hr_scale": -1, "enable_hr": True},
        {"num_outputs": 10**30},
        {"seed": -(2**63)},
        {"image": picture((20_000, 20_000))},
        {"image": picture((1, 1_600_000))},
        {"image": png_that_claims(2**31 - 1, 2**31 - 1)},
        {"image": png_that_claims(6000, 6000)},
        {"image": picture((64, 64))[:-40]},
    ]
    bodies |= {f"size {number}": _inputs(**changes) for number, changes in enumerate(sizes)}
    urls = [
        "file:///etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1:9/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
    ]
    urls += [
        "http://localhost:22/",
        "http://169.254.169.254/latest/meta-data",
        "gopher://x",
        "data:",
        "data:,",
        "http://",
    ]
    bodies |= {f"address {url:.40}": _inputs(image=url) for url in urls}
    return {name: json.dumps(body).encode() for name, body in bodies.items()} | {
        "surrogate": b'{"input": {"prompt": "\\ud800"}}',
        "key twice": b'{"input": {"prompt": "a"}, "input": {"prompt": "b"}}',
        "not a number": b'{"input": {"prompt": "a", "seed": NaN}}',
        "digits": b'{"input": {"prompt": "a", "seed": ' + b"9" * 5000 + b"}}",
        "byte order mark": b"\xef\xbb\xbf{}",
        "UTF-16": json.dumps(_inputs()).encode("utf-16"),
    }


@cache
def heavy_bodies() -> dict[str, bytes]:
    """Of megabytes. None of them is a right request."""
    texts = ("prompt", "negative_prompt", "ad_prompt", "adetailer_args", "upscaler")
    long = {f"text {name}": _inputs(**{name: "red hat, " * 500_000}) for name in texts}
    return {name: json.dumps(body).encode() for name, body in long.items()} | {
        "nested": b'{"input":' * 400_000,
        "nested units": json.dumps(_inputs(adetailer=True, adetailer_args="[" * 2_000_000)).encode(),
        "many names": json.dumps({"input": {f"n{number}": number for number in range(200_000)}}).encode(),
        "name of megabytes": json.dumps(_inputs(**{"x" * 4_000_000: 1})).encode(),
        "noise": json.dumps(_inputs(image=data_url(bytes(range(256)) * 100_000))).encode(),
        "zeros": b'{"input": {"image": "' + b"0" * 40_000_000 + b'"}}',
    }
