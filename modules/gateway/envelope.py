"""What surrounds the inputs in the body of a request: the id, and the webhook."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from backend.core.errors import nearest
from modules.gateway.refusal import Refusal

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Cog's server makes a folder of this name."""
EVENTS = ("start", "output", "logs", "completed")
KEYS = ("id", "input", "webhook", "webhook_events_filter")
NO_EFFECT: Mapping[str, str] = MappingProxyType(
    {
        "context": "the inputs alone decide",
        "created_at": "the server takes the times itself",
        "output_file_prefix": "pictures come back as data: URLs, or go to the --upload-url of the server",
    }
)
"""Keys that Cog has or had, and why they do nothing here."""
MAX_URL = 2048


@dataclass(frozen=True)
class Envelope:
    """One request for a prediction. ``inputs`` are as they were sent; ``webhook`` is "" where none is wanted."""

    id: str
    inputs: Mapping[str, Any]
    webhook: str
    events: tuple[str, ...]


def check_id(prediction: object, where: tuple[str, ...]) -> str:
    """The id of a prediction; raises :class:`Refusal` for one that cannot name a folder."""
    if not isinstance(prediction, str) or not ID.fullmatch(prediction):
        raise Refusal(422, "must be 1 to 64 letters, digits, - or _", where)
    return prediction


def envelope_of(body: object, path_id: str = "") -> Envelope:
    """The request in this JSON body; ``path_id`` is the id in the path. A key that is null counts as left out.

    Raises :class:`Refusal` for a key that is unknown, wrong or without effect.
    """
    if not isinstance(body, dict):
        raise Refusal(422, 'must be an object such as {"input": {"prompt": "a red fox"}}')
    given = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name in NO_EFFECT and given.get(name):
            raise Refusal(422, f"has no effect: {NO_EFFECT[name]}; leave it out", ("body", name))
        if name not in KEYS and name not in NO_EFFECT:
            hint = nearest(name, KEYS) or f"; the keys are {', '.join(KEYS)}"
            raise Refusal(422, f"is not known{hint}", ("body", name[:80]))
    prediction = check_id(given["id"], ("body", "id")) if "id" in given else ""
    if prediction and path_id and prediction != path_id:
        raise Refusal(422, "must be the id in the path, or be left out", ("body", "id"))
    inputs = given.get("input", {})
    if not isinstance(inputs, dict):
        raise Refusal(422, "must be an object of names and values", ("body", "input"))
    webhook = _webhook(given.get("webhook", ""))
    events = _events(given.get("webhook_events_filter", list(EVENTS)))
    if "webhook_events_filter" in given and not webhook:
        raise Refusal(422, "needs a webhook; leave it out", ("body", "webhook_events_filter"))
    return Envelope(path_id or prediction or new_id(), inputs, webhook, events)


def new_id() -> str:
    return f"pred_{secrets.token_hex(8)}"


def _webhook(url: object) -> str:
    where = ("body", "webhook")
    if url == "":
        return ""
    if not isinstance(url, str) or len(url) > MAX_URL or not url.isprintable() or not url.isascii():
        raise Refusal(422, f"must be an http(s) address of at most {MAX_URL} characters", where)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Refusal(422, "must be an http(s) address with a host", where)
    return url


def _events(given: object) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not all(event in EVENTS for event in given):
        raise Refusal(422, f"must be a list of {', '.join(EVENTS)}", ("body", "webhook_events_filter"))
    return tuple(given)
