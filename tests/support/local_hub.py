"""A hub of our own on this machine: the addresses and headers that huggingface_hub asks for, over files that a test
makes up."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from safetensors.numpy import save
from support.background import serve_in_background

from backend.weights.catalog import read_manifest

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_only-for-this-test"
PIECE = 64 * 1024


def manifest_files(names: tuple[str, ...], shard_bytes: int) -> dict[str, dict[str, bytes]]:
    """Every file of some models, by repository and path, of the right kind and of made-up content; shards of a
    pipeline have ``shard_bytes``."""
    repositories: dict[str, dict[str, bytes]] = {}
    rng = np.random.default_rng(7)
    for name in names:
        for file in read_manifest()[name].files:
            if file.path.endswith(".safetensors"):
                content = save({"weight": rng.integers(0, 255, shard_bytes, dtype=np.uint8)})
            elif file.path.endswith((".pt", ".pth")):
                content = b"PK\x03\x04" + rng.bytes(100_000)
            else:
                content = json.dumps({"file": file.path}).encode()
            repositories.setdefault(file.repository, {})[file.path] = content
    return repositories


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str) -> bool:
    """What the hub keeps outside of git, and names by its SHA-256."""
    return path.endswith((".safetensors", ".pt", ".pth"))


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class LocalHub:
    """What it serves and how badly, and what it was asked for."""

    repositories: dict[str, dict[str, bytes]]
    gated: frozenset[str] = frozenset()
    rate: float = 0.0
    """Bytes a second of one connection; 0 = as fast as it goes."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """By path: other bytes than the headers promise."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """By path: bytes after which every connection breaks off."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """By path: the address that a download is sent on to."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path in the repository, range."""
    tokens: dict[str, set[str]] = field(default_factory=dict)
    """By repository: the authorizations that were sent."""
    sent: int = 0
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        serve_in_background(self.server)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def total(self) -> int:
        return sum(len(content) for files in self.repositories.values() for content in files.values())


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.api("/".join(parts[2:4]), parts[4:])
            return
        repository, path = "/".join(parts[:2]), "/".join(parts[4:])
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
            self.hub.tokens.setdefault(repository, set()).add(self.headers.get("Authorization", ""))
        if repository in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"})
        elif path not in self.hub.repositories.get(repository, {}):
            self.reply(
                404, {"X-Error-Code": "EntryNotFound" if repository in self.hub.repositories else "RepoNotFound"}
            )
        elif with_body and path in self.hub.elsewhere:
            self.reply(302, {"Location": self.hub.elsewhere[path]})
        else:
            self.file(path, self.hub.repositories[repository][path], with_body)

    def reply(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def file(self, path: str, content: bytes, with_body: bool) -> None:
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        name = sha256(content) if is_large(path) else git_name(content)
        body = self.hub.wrong.get(path, content)[start:]
        self.send_response(206 if start else 200)
        for header, value in {
            "ETag": f'"{name}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(body)),
            "Accept-Ranges": "bytes",
        }.items():
            self.send_header(header, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self.send_slowly(path, body)

    def send_slowly(self, path: str, body: bytes) -> None:
        hub = self.hub
        with hub.lock:
            hub.at_once += 1
            hub.most_at_once = max(hub.most_at_once, hub.at_once)
        try:
            for start in range(0, min(len(body), hub.cut_after.get(path, len(body))), PIECE):
                piece = body[start : start + PIECE]
                self.wfile.write(piece)
                with hub.lock:
                    hub.sent += len(piece)
                if hub.rate:
                    time.sleep(len(piece) / hub.rate)
        except OSError:  # the other end was killed
            pass
        finally:
            with hub.lock:
                hub.at_once -= 1
        if path in hub.cut_after:
            self.close_connection = True

    def api(self, repository: str, rest: list[str]) -> None:
        """What ``hf download`` and ``hf cache verify`` ask: the commit, and the files with their checksums."""
        files = self.hub.repositories.get(repository, {})
        listing: list[dict[str, Any]] = []
        for path, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_name(content)}
            if is_large(path):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            listing.append(entry)
        found: Any = (
            listing
            if "tree" in rest
            else {
                "id": repository,
                "modelId": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": path} for path in files],
            }
        )
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
