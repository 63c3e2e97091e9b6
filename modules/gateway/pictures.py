"""Pictures as clients send them: ``data:`` URLs."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from backend.core.errors import InputError

PREFIX = "data:"
BASE64 = ";base64"
SPACE = bytes(range(33))
"""Spaces, line breaks and control characters: in base64 they mean nothing, and the command ``base64`` breaks lines."""


def decode(field: str, url: str) -> bytes:
    """The content of a ``data:`` URL, read as browsers do: line breaks and missing ``=`` in the base64 do no harm.
    Raises :class:`InputError`."""
    head, comma, data = url[len(PREFIX) :].partition(",")
    if not comma or not data:
        raise InputError(field, "is a data: URL without data")
    is_base64 = head.lower().endswith(BASE64)
    content = unquote_to_bytes(data) if "%" in data or not is_base64 else data.encode()
    if not is_base64:
        return content
    content = content.translate(None, SPACE).rstrip(b"=")
    try:
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(field, "is a data: URL that is not valid base64 (A-Z, a-z, 0-9, + and /)") from None


def is_data_url(text: str) -> bool:
    """Whether it begins as one; the scheme may be written in capitals."""
    return text[: len(PREFIX)].lower() == PREFIX


def encode(content: bytes) -> str:
    """A ``data:`` URL of a file's content. The content alone says what kind of picture it is."""
    return f"{PREFIX}application/octet-stream;base64,{base64.b64encode(content).decode()}"
