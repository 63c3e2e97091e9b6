"""Downloads files of the manifest from the hub: several at a time, resumed where they were cut off, installed only when
their checksum is right.

The bytes come by huggingface_hub's ``http_get``, and addresses, revisions and checksums from its API. Its whole-file
``hf_hub_download`` (2.4.0) is not used: every run writes to a new name and deletes it when it fails, so a 24 GB file
that is cut off begins anew. Here a file comes into ``.partial`` under a name that the next run finds. It is moved to
its place when its checksum is that of the lock (the hub's own, the first time) and its header is what its name says.
Whatever is killed when, a file that is in its place is right.
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
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from backend.checkpoints.file_type import check_content, digest, git_digest
from backend.core.errors import WeightsError
from backend.weights.catalog import WeightFile, read_manifest
from backend.weights.lockfile import PARTIAL, LockedFile, exclusive, read_lock, write_lock

TIMEOUT = 30.0
"""Seconds within which the hub must answer what it has."""
HUB_DOMAINS = ("huggingface.co", "hf.co")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

OnProgress = Callable[[WeightFile, int, int], None]
"""Called with a file, its bytes so far, and its size in bytes."""


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
    """What became of a file: ``problem`` is empty when it is installed."""

    file: WeightFile
    problem: str = ""
    bytes: int = 0
    seconds: float = 0.0


class _Relay:
    """Stands where ``http_get`` expects a progress bar: passes the bytes so far on, and stops a download that is not
    wanted any more or longer than the hub said."""

    def __init__(self, file: WeightFile, size: int, on_progress: OnProgress, stop: Event, **bar: Any) -> None:
        self.file, self.size, self.on_progress, self.stop = file, size, on_progress, stop
        self.here: int = bar["initial"]

    def __enter__(self) -> _Relay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.here += count
        if self.stop.is_set():
            raise Stopped
        if self.here > self.size:
            raise WeightsError(f"{self.file.local}: the hub sends more than it said; check HF_ENDPOINT")
        self.on_progress(self.file, self.here, self.size)


def fetch(files: Sequence[WeightFile], folder: Path, jobs: int, on_progress: OnProgress) -> Iterator[Outcome]:
    """Downloads what is not installed yet, ``jobs`` files at a time, and gives each file's outcome when it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder), ThreadPoolExecutor(jobs) as pool:
        fetcher = Fetcher(folder, on_progress)
        try:
            yield from pool.map(fetcher.fetch, files)
        except BaseException:
            fetcher.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Fetcher:
    """Downloads files into one folder of weights and keeps its lock; used by several threads."""

    def __init__(self, folder: Path, on_progress: OnProgress) -> None:
        self.folder, self.on_progress = folder, on_progress
        self.stop = Event()
        self._lock, self._writing = read_lock(folder), Lock()
        guard_connections()

    def fetch(self, file: WeightFile) -> Outcome:
        """Raises nothing for what a hub, a network or a disk can do wrong: that is the outcome."""
        begin = time.monotonic()
        try:
            size = self._fetch(file)
        except WeightsError as error:
            return Outcome(file, str(error))
        except HTTPError as error:
            return Outcome(file, f"{file.local}: {in_words(file, error)}")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            return Outcome(file, f"{file.local}: cannot be written ({reason}); check the disk and run this again")
        return Outcome(file, "", size, time.monotonic() - begin)

    def _fetch(self, file: WeightFile) -> int:
        target, locked = self.folder / file.local, self._lock.get(file.local)
        if locked and target.is_file() and target.stat().st_size == locked.bytes:
            self.on_progress(file, locked.bytes, locked.bytes)
            return locked.bytes
        remote = self._ask(file, locked)
        if target.is_file() and not locked:  # a user put it there: it is what the hub has, or not ours to replace
            sha256 = verified(target, remote)
            if not sha256:
                raise WeightsError(f"{file.local}: another file of this name is there; move it away and run this again")
            self._record(file, sha256, remote)
            return remote.bytes
        part = self._part(file, remote)
        sha256 = self._complete(file, remote, part)
        if not sha256 or (locked and sha256 != locked.sha256):
            part.unlink()
            raise WeightsError(
                f"{file.local}: what came has the wrong checksum and is not installed; run this again, or ask whoever "
                "runs the hub"
            )
        check_content(part, file.local)
        self._record(file, sha256, remote)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        return remote.bytes

    def _complete(self, file: WeightFile, remote: Remote, part: Path) -> str:
        """Downloads what is missing of ``part``; gives its SHA-256, empty when it is not the hub's file."""
        part.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.is_file() and part.stat().st_size > 0
        self._download(file, remote, part)
        sha256 = verified(part, remote)
        if resumed and not sha256:  # what an earlier run left was not the beginning of this file
            part.unlink()
            self._download(file, remote, part)
            sha256 = verified(part, remote)
        return sha256

    def _part(self, file: WeightFile, remote: Remote) -> Path:
        return self.folder / PARTIAL / f"{hashlib.sha256(file.local.encode()).hexdigest()[:16]}-{remote.etag}"

    def _ask(self, file: WeightFile, locked: LockedFile | None) -> Remote:
        """What the hub has, at the revision of the lock where there is one."""
        revision = locked.revision if locked and locked.revision else file.revision
        url = hf_hub_url(file.repository, file.path, revision=revision)
        answer = get_hf_file_metadata(url, token=token_for(file), timeout=TIMEOUT, retry_on_errors=True)
        if answer.etag is None or answer.size is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", answer.etag):
            raise WeightsError(f"{file.local}: the hub names no checksum or size for it; check HF_ENDPOINT")
        if locked and (answer.size != locked.bytes or (len(answer.etag) == 64 and answer.etag != locked.sha256)):
            raise WeightsError(
                f"{file.local}: the hub has another file than the lock; if the new one is wanted, delete its entry in "
                "weights/lock.json"
            )
        return Remote(url, answer.size, answer.etag, answer.commit_hash or "")

    def _download(self, file: WeightFile, remote: Remote, part: Path) -> None:
        """Appends to ``part`` what is missing, over as many connections as it takes."""
        if part.is_file() and part.stat().st_size > remote.bytes:
            part.unlink()
        with part.open("ab") as writing:
            start = writing.tell()
            require_space(part.parent, remote.bytes - start)
            if start < remote.bytes:
                http_get(
                    remote.url,
                    writing,
                    resume_size=start,
                    headers=build_hf_headers(token=token_for(file)) | {"Accept-Encoding": "identity"},
                    tqdm_class=partial(_Relay, file, remote.bytes, self.on_progress, self.stop),  # type: ignore[arg-type]
                )
            writing.flush()
            os.fsync(writing.fileno())
        self.on_progress(file, remote.bytes, remote.bytes)

    def _record(self, file: WeightFile, sha256: str, remote: Remote) -> None:
        """Before the file is moved to its place, so that what is there is always known."""
        entry = LockedFile(remote.bytes, sha256, file.repository, remote.revision)
        with self._writing:
            self._lock[file.local] = entry
            write_lock(self.folder, self._lock)


def verified(path: Path, remote: Remote) -> str:
    """The SHA-256 of a file that is the hub's; empty for any other."""
    if path.stat().st_size != remote.bytes:
        return ""
    sha256 = digest(path)
    return sha256 if remote.etag == (sha256 if len(remote.etag) == 64 else git_digest(path)) else ""


def token_for(file: WeightFile) -> str | bool:
    """From HF_TOKEN, or the file that HF_TOKEN_PATH names (a build secret); sent only for a gated model."""
    return (get_token() or False) if read_manifest()[file.model].gated else False


def require_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise WeightsError(
            f"the disk of the weights has {free / 1e9:.1f} GB left, {wanted / 1e9:.1f} are needed; make room and run "
            "this again"
        )


def guard_connections() -> None:
    """Every connection, also after a redirect, goes to the hub or a host of its domains, encrypted; or to this machine
    if that is the hub."""
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
            f"a download was redirected to {request.url.scheme}://{host}, which is not the hub; check HF_ENDPOINT"
        )


def in_words(file: WeightFile, error: HTTPError) -> str:
    """What went wrong, without addresses, which may be signed."""
    if isinstance(error, GatedRepoError):
        return f"{file.repository} is gated; accept its licence on its page, then give a token in HF_TOKEN"
    if isinstance(error, EntryNotFoundError | RevisionNotFoundError):
        return f"{file.repository} has no {file.path} at this revision; check weights/manifest.json"
    if isinstance(error, RepositoryNotFoundError):
        return f"{file.repository} is not there, or a token in HF_TOKEN is needed to see it"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}; run this again later"
    return f"the connection failed ({type(error).__name__}); run this again, it resumes where it was"
