"""Brings files of the manifest from the hub: several at a time, each going on where it was cut off, installed only when
its checksum is right.

The hub's library names the addresses, the revisions and the checksums, and makes the connections. What it does not do
any more is to keep the beginning of a file that was cut off, so the bytes are written here. A file comes into
``.partial`` and is moved to its place when it is whole, its checksum is the lock's, or the hub's own the first time,
and its header is what its name says; whatever is killed when, a file that is in its place is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from httpx2 import HTTPError
from huggingface_hub import constants, get_hf_file_metadata, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, http_stream_backoff  # type: ignore[attr-defined]

from backend.checkpoints.file_type import check_content, digest, git_digest
from backend.core.errors import WeightsError
from backend.weights.catalog import PARTIAL, LockedFile, WeightFile, exclusive, read_lock, read_manifest, write_lock

CHUNK = 2**20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""
PATIENCE = 3
"""Connections in a row that may bring nothing before a file is given up."""
HUB_DOMAINS = ("huggingface.co", "hf.co")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Tell = Callable[[WeightFile, int, int], None]
"""Told of a file: bytes that are here, bytes in all."""


class Stopped(Exception):
    """The user wants to stop; what has come so far stays for the next time."""


@dataclass(frozen=True)
class Remote:
    """What the hub says about a file: ``etag`` is its SHA-256, or git's name for a small one."""

    url: str
    bytes: int
    etag: str
    revision: str


@dataclass(frozen=True)
class Outcome:
    """What became of a file: ``problem`` is empty when it is in its place."""

    file: WeightFile
    problem: str = ""
    bytes: int = 0
    seconds: float = 0.0


def fetch(files: Sequence[WeightFile], folder: Path, jobs: int, tell: Tell) -> Iterator[Outcome]:
    """Brings what is not installed yet, ``jobs`` files at a time, and gives each file's outcome when it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder), ThreadPoolExecutor(jobs) as pool:
        fetcher = Fetcher(folder, tell)
        try:
            yield from pool.map(fetcher.fetch, files)
        except BaseException:
            fetcher.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Fetcher:
    """Brings files into one folder of weights and keeps its lock; used by several threads."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        self.folder, self.tell = folder, tell
        self.stop = Event()
        self._lock, self._writing = read_lock(folder), Lock()
        guard_connections()

    def fetch(self, file: WeightFile) -> Outcome:
        """Never raises for what a hub, a network or a disk can do wrong: that is the outcome."""
        begin = time.monotonic()
        try:
            size = self._fetch(file)
        except WeightsError as error:
            return Outcome(file, str(error))
        except HTTPError as error:
            return Outcome(file, f"{file.local}: {in_words(file, error)}")
        except OSError as error:
            return Outcome(
                file,
                f"{file.local}: cannot be written ({error.strerror or type(error).__name__}); see to the disk and run "
                "this again",
            )
        return Outcome(file, "", size, time.monotonic() - begin)

    def _fetch(self, file: WeightFile) -> int:
        target, locked = self.folder / file.local, self._lock.get(file.local)
        if locked and target.is_file() and target.stat().st_size == locked.bytes:
            self.tell(file, locked.bytes, locked.bytes)
            return locked.bytes
        remote = self._ask(file, locked)
        if (
            target.is_file() and not locked
        ):  # somebody put it there: it is what the hub has, or it is not ours to replace
            if not is_content(target, remote):
                raise WeightsError(f"{file.local}: another file of this name is there; move it away and run this again")
            self._record(file, target, remote)
            return remote.bytes
        part = self._part(file, remote)
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.is_file() and part.stat().st_size > 0
        self._bring(file, remote, part)
        if resumed and not is_content(part, remote):  # what an earlier run left was not a beginning of this file
            part.unlink()
            self._bring(file, remote, part)
        if not is_content(part, remote) or (locked and digest(part) != locked.sha256):
            part.unlink()
            raise WeightsError(
                f"{file.local}: what came has the wrong checksum and is not installed; run this again, or ask whoever "
                "runs the hub"
            )
        check_content(part, file.local)
        self._record(file, part, remote)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        return remote.bytes

    def _part(self, file: WeightFile, remote: Remote) -> Path:
        return self.folder / PARTIAL / f"{hashlib.sha256(file.local.encode()).hexdigest()[:16]}-{remote.etag}"

    def _ask(self, file: WeightFile, locked: LockedFile | None) -> Remote:
        """What the hub has, at the revision of the lock where there is one."""
        url = hf_hub_url(
            file.repository, file.path, revision=locked.revision if locked and locked.revision else file.revision
        )
        answer = get_hf_file_metadata(url, token=token_for(file), timeout=TIMEOUT, retry_on_errors=True)
        if answer.etag is None or answer.size is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", answer.etag):
            raise WeightsError(f"{file.local}: the hub names no checksum or size for it; see to HF_ENDPOINT")
        if locked and (answer.size != locked.bytes or (len(answer.etag) == 64 and answer.etag != locked.sha256)):
            raise WeightsError(
                f"{file.local}: the hub has another file than the lock; if the new one is wanted, delete its entry in "
                "weights/lock.json"
            )
        return Remote(url, answer.size, answer.etag, answer.commit_hash or "")

    def _bring(self, file: WeightFile, remote: Remote, part: Path) -> None:
        """Completes ``part`` to the size that the hub named, over as many connections as it takes."""
        if part.is_file() and part.stat().st_size > remote.bytes:
            part.unlink()
        in_vain = 0
        with part.open("ab") as writing:
            require_space(part.parent, remote.bytes - writing.tell())
            while (have := writing.tell()) < remote.bytes:
                self.tell(file, have, remote.bytes)
                failure: Exception = WeightsError(
                    f"{file.local}: the hub sends less than it said; run this again, or see to HF_ENDPOINT"
                )
                try:
                    self._receive(file, remote, writing)
                except HfHubHTTPError:
                    raise
                except HTTPError as error:  # the connection broke off: the next one goes on
                    failure = error
                in_vain = 0 if writing.tell() > have else in_vain + 1
                if in_vain > PATIENCE:
                    raise failure
                if in_vain:
                    self.stop.wait(2**in_vain / 4)
            writing.flush()
            os.fsync(writing.fileno())
        self.tell(file, remote.bytes, remote.bytes)

    def _receive(self, file: WeightFile, remote: Remote, writing: Any) -> None:
        """What one connection brings, from where the file ends now."""
        start = writing.tell()
        headers = (
            build_hf_headers(token=token_for(file))
            | {"Accept-Encoding": "identity"}
            | ({"Range": f"bytes={start}-"} if start else {})
        )
        with http_stream_backoff(
            "GET", remote.url, headers=headers, timeout=TIMEOUT, retry_on_exceptions=()
        ) as answer:  # _bring() tries again
            answer.raise_for_status()
            if start and answer.status_code != 206:  # the server begins anew
                writing.truncate(0)
            for chunk in answer.iter_raw(CHUNK):
                if self.stop.is_set():
                    raise Stopped
                if writing.tell() + len(chunk) > remote.bytes:
                    raise WeightsError(f"{file.local}: the hub sends more than it said; see to HF_ENDPOINT")
                writing.write(chunk)
                writing.flush()
                self.tell(file, writing.tell(), remote.bytes)

    def _record(self, file: WeightFile, path: Path, remote: Remote) -> None:
        """Before the file is moved to its place, so that what is there is always known."""
        entry = LockedFile(remote.bytes, digest(path), file.repository, remote.revision)
        with self._writing:
            self._lock[file.local] = entry
            write_lock(self.folder, self._lock)


def is_content(path: Path, remote: Remote) -> bool:
    return (
        path.stat().st_size == remote.bytes
        and (digest(path) if len(remote.etag) == 64 else git_digest(path)) == remote.etag
    )


def token_for(file: WeightFile) -> str | bool:
    """From HF_TOKEN, or the file that HF_TOKEN_PATH names (a secret of a build); sent only to where it is needed."""
    return (get_token() or False) if read_manifest()[file.model].gated else False


def require_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise WeightsError(
            f"the disk of the weights has {free / 1e9:.1f} GB left, {wanted / 1e9:.1f} are needed; make room and run "
            "this again"
        )


def guard_connections() -> None:
    """Every connection, after each redirect too, goes to the hub or a host of its domains, encrypted; or to this
    machine, if that is the hub."""
    endpoint = urlsplit(constants.ENDPOINT).hostname
    session, refuse = get_session(), partial(refuse_foreign, endpoint)
    hooks = session.event_hooks
    if not any(isinstance(hook, partial) and hook.func is refuse_foreign for hook in hooks["request"]):
        session.event_hooks = {**hooks, "request": [*hooks["request"], refuse]}


def refuse_foreign(endpoint: str | None, request: Any) -> None:
    host, local = request.url.host, endpoint in LOOPBACK
    known = host == endpoint or any(host == domain or host.endswith(f".{domain}") for domain in HUB_DOMAINS)
    if not known or not (request.url.scheme == "https" or (local and host == endpoint)):
        raise WeightsError(
            f"a download was led to {request.url.scheme}://{host}, which is not the hub; see to HF_ENDPOINT"
        )


def in_words(file: WeightFile, error: HTTPError) -> str:
    """What went wrong, without addresses, which may be signed."""
    if isinstance(error, GatedRepoError):
        return f"{file.repository} is gated; accept its licence on its page, then give a token in HF_TOKEN"
    if isinstance(error, EntryNotFoundError | RevisionNotFoundError):
        return f"{file.repository} has no {file.path} at this revision; see to weights/manifest.json"
    if isinstance(error, RepositoryNotFoundError):
        return f"{file.repository} is not there, or a token in HF_TOKEN is needed to see it"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}; run this again later"
    return f"the connection failed ({type(error).__name__}); run this again, it goes on where it was"
