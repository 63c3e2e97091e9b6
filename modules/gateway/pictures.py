"""Pictures as clients send them: ``data:`` URLs."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from backend.core.errors import InputError

PREFIX = "data:"


def decode(field: str, url: str) -> bytes:
    """The content of a ``data:`` URL. Raises :class:`InputError`."""
    head, comma, data = url[len(PREFIX) :].partition(",")
    if not comma or not data:
        raise InputError(field, "is a data: URL without data")
    content = unquote_to_bytes(data) if "%" in data or not head.endswith(";base64") else data.encode()
    if not head.endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(field, "is a data: URL that is not valid base64") from None


def encode(content: bytes) -> str:
    """A ``data:`` URL of a file's content. The content alone says what kind of picture it is."""
    return f"{PREFIX}application/octet-stream;base64,{base64.b64encode(content).decode()}"
