"""Hosts of LoRA files on this machine: real TLS under the real names, so that the code under test makes the same
connections as to the internet. Only the resolver and the trusted certificate are the test's."""

from __future__ import annotations

import io
import json
import socket
import ssl
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp.abc import AbstractResolver, ResolveResult
from safetensors.numpy import save
from support.background import serve_in_background

from backend.core.cancellation import Check
from backend.core.public_network import PublicResolver
from modules.lora.files.disk_cache import DiskCache
from modules.lora.files.download import Downloader, Limits, Network
from modules.lora.files.sources import LoraSources
from modules.lora.files.store import LoraStore

NAMES = (
    "huggingface.co",
    "cdn-lfs.hf.co",
    "civitai.com",
    "civitai-delivery-worker-prod.0af1.r2.cloudflarestorage.com",
    "replicate.com",
    "replicate.delivery",
    "loras.example",
    "other.example",
)
ALL = ("local", "huggingface", "civitai", "replicate", "https")
QUICK = Limits(file_bytes=200_000, text_bytes=20_000, unknown_bytes=1000, seconds=60, patience=10, slowest=20_000)
"""Small limits, which also hold on a machine that is busy with something else."""
IMPATIENT = replace(QUICK, patience=0.3)
"""For hosts that are slow on purpose."""


def lora_bytes(seed: int = 0, size: int = 4000) -> bytes:
    """A small safetensors file; what is in it is not looked at here."""
    tensor = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    return save({"transformer.x_embedder.lora_A.weight": tensor}, {"format": "pt"})


def tar_of(**members: bytes) -> bytes:
    """A tar of regular files by name; ``__`` in a name stands for a slash and ``_st`` at its end for the suffix."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_st", ".safetensors"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


@dataclass
class Page:
    """What a host answers: ``body`` in pieces, with ``pause`` seconds before each; ``length`` is what it claims."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    pause: float = 0.0
    piece: int = 2**20
    endless: bool = False
    token: str = ""
    """Without this token it answers 401."""


@dataclass
class LoraHub:
    """``pages`` by host and path (with its query). ``seen`` are the requests: host, path, authorization."""

    certificate: Path
    pages: dict[str, Page] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    """Of names that are no hosts here, the answers of the resolver, one after the other."""

    def __post_init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.certificate)
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        serve_in_background(self.server)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def port(self) -> int:
        port: int = self.server.server_address[1]
        return port

    def add(self, address: str, body: bytes = b"", **more: Any) -> None:
        """A page at ``host/path``."""
        self.pages[address] = Page(body, **more)

    def add_model(self, model: str, files: Mapping[str, bytes], token: str = "") -> None:
        """A model as Hugging Face describes it, with its files."""
        siblings = [{"rfilename": name} for name in files]
        about = json.dumps({"id": model, "sha": "c0ffee" + "0" * 34, "siblings": siblings}).encode()
        self.add(f"huggingface.co/api/models/{model}/revision/main?blobs=true", about, token=token)
        for name, content in files.items():
            self.add(f"huggingface.co/{model}/resolve/c0ffee{'0' * 34}/{name}", content, token=token)

    def downloader(self, limits: Limits = QUICK) -> Callable[[Check], Downloader]:
        """The product's own, which finds these hosts and trusts them."""
        tls = ssl.create_default_context(cafile=str(self.certificate))
        return lambda check: Downloader(Network(lambda: _Resolver(self), tls), limits, check)

    def store(
        self,
        folder: Path,
        limits: Limits = QUICK,
        sources: tuple[str, ...] = ALL,
        room: int = 10**6,
        reserved: int = 0,
    ) -> LoraStore:
        """A store whose files lie in ``folder``, on a disk however full."""
        cache = DiskCache((folder / "cache",), room, reserved)
        return LoraStore(LoraSources(sources, folder / "loras"), cache, self.downloader(limits))


class _Resolver(AbstractResolver):
    """The hosts here under their names; all others as the product looks them up."""

    def __init__(self, hub: LoraHub) -> None:
        self.hub, self.others = hub, PublicResolver(_Answers(hub.addresses))

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host in NAMES and host not in self.hub.addresses:
            return [_at(host, "127.0.0.1", self.hub.port)]
        found = await self.others.resolve(host, port, family)
        return [_at(host, "127.0.0.1", self.hub.port) for _ in found]  # an address of the internet stands for this hub

    async def close(self) -> None:
        pass


@dataclass
class _Answers(AbstractResolver):
    answers: dict[str, list[str]]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if not self.answers.get(host):
            raise OSError(None, "Name or service not known")
        return [_at(host, self.answers[host].pop(0), port)]

    async def close(self) -> None:
        pass


def _at(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)


class _Handler(BaseHTTPRequestHandler):
    hub: LoraHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):  # the other end goes away, or does not speak TLS
            super().handle()

    def do_GET(self) -> None:
        host, authorization = self.headers["Host"], self.headers.get("Authorization", "")
        self.hub.seen.append((host, self.path, authorization))
        page = self.hub.pages.get(host + self.path, Page(status=404))
        if page.token and authorization != f"Bearer {page.token}":
            page = Page(status=401)
        self.send_response(page.status)
        headers = {"Content-Type": "application/octet-stream", **page.headers}
        if not page.endless and "Transfer-Encoding" not in headers:
            headers["Content-Length"] = str(len(page.body) if page.length is None else page.length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        pieces = [page.body[start : start + page.piece] for start in range(0, len(page.body), page.piece)]
        while pieces:
            for piece in pieces:
                time.sleep(page.pause)
                self.wfile.write(piece)
            if not page.endless:
                return


def make_certificate(folder: Path) -> Path:
    """A key and a certificate for all names here, in one file."""
    file = folder / "hub.pem"
    names = ",".join(f"DNS:{name}" for name in (*NAMES, "rebound.example", "inside.example"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    options = ["-subj", "/CN=hub", "-addext", f"subjectAltName={names}", "-days", "2"]
    subprocess.run([*command, *options, "-keyout", file, "-out", folder / "cert.pem"], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (folder / "cert.pem").read_bytes())
    return file
