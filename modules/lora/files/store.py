"""References to LoRA files -> files: of ``weights/loras``, of the cache on disk, or downloaded where that is allowed.

Nothing is downloaded unless a request asks for it and the setting ``lora_sources`` allows its source.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from backend.checkpoints.file_type import check_safetensors, is_pickle
from backend.core.cancellation import Check, never_canceled
from backend.core.data_files import DataError, require_regular
from backend.core.errors import InputError, StorageError, WeightsError
from backend.core.files import is_safe_name
from backend.core.validation import unveiled
from modules.lora.files.digests import DigestMemo, digests
from modules.lora.files.disk_cache import DiskCache, Kept
from modules.lora.files.lora_file import LoraError, LoraFile
from modules.lora.files.references import SUFFIXES, TOKEN_INPUTS, LocalName, Reference, shown
from modules.lora.files.sources import LoraSources

if TYPE_CHECKING:
    from modules.lora.files.download import Downloader, DownloadError
    from modules.lora.files.hosts import Target

OnProgress = Callable[[int, int], None]
"""Called with the bytes of a download so far, and those of the file; 0 where its host does not say."""
Accept = Callable[[LoraFile], object]


def no_progress(done: int, total: int) -> None:
    """Progress for callers that do not want any."""


def accept_any(file: LoraFile) -> None:
    """For callers that take every file."""


@dataclass(frozen=True)
class Tokens:
    """By the name of a source. They are not shown, and not kept."""

    by_source: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of_inputs(cls, inputs: Mapping[str, Any]) -> Tokens:
        """Those among the inputs of a request."""
        given = {source: unveiled(inputs.get(name)) for source, name in TOKEN_INPUTS.items()}
        return cls({source: str(token) for source, token in given.items() if token})

    def of(self, source: str) -> str:
        return self.by_source.get(source, "")


@dataclass(frozen=True)
class Fetch:
    """How one file is fetched.

    Attributes:
        input_name: The input that errors name.
        tokens: Of the request.
        check: Ends waiting and downloads by raising.
        on_progress: Told of every piece of a download.
        accept: Told of the file, before a downloaded one is installed; raises LoraError for one that is of no use here.
        keep: Hashes of files that must not be deleted to make room, such as the other ones of the request.
    """

    input_name: str = "lora_weights"
    tokens: Tokens = field(default_factory=Tokens)
    check: Check = never_canceled
    on_progress: OnProgress = no_progress
    accept: Accept = accept_any
    keep: frozenset[str] = frozenset()

    def refused(self, reference: Reference, problem: str) -> InputError:
        return InputError(self.input_name, f"'{shown(reference.text)}' {problem}")


class NotThereError(Exception):
    """A hub has no such model, as far as it tells."""


def public_downloader(check: Check) -> Downloader:
    """Downloads from the internet. The libraries for it are imported only now."""
    from modules.lora.files.download import Downloader, Limits, Network

    return Downloader(Network(), Limits(), check)


@dataclass(frozen=True)
class LoraStore:
    """One for the life of a service."""

    sources: LoraSources
    cache: DiskCache
    downloader: Callable[[Check], Downloader] = public_downloader
    memo: DigestMemo = field(default_factory=DigestMemo)

    def fetch(self, reference: str, how: Fetch | None = None) -> LoraFile:
        """The file that a reference names.

        Raises :class:`InputError`, which names the input and no token, for what cannot be read, is not allowed, not
        there, too large, or no safetensors file. Then nothing of it is left on disk.
        """
        how = how or Fetch()
        try:
            return self._found(self.sources.references(reference, how.input_name), how)
        except LoraError as problem:
            raise InputError(how.input_name, str(problem)) from None

    def _found(self, meant: Sequence[Reference], how: Fetch) -> LoraFile:
        """The file of the first meaning that has one."""
        if isinstance(meant[0], LocalName):
            return self._local(meant[0], how)
        for one in meant:
            if file := self._cached(one, how):
                return file
        problems = []
        for one in meant:
            try:
                return self._fetched(one, how)
            except NotThereError as problem:  # the next meaning is tried
                problems.append(str(problem))
        raise InputError(how.input_name, "; ".join(problems))

    def _local(self, reference: LocalName, how: Fetch) -> LoraFile:
        path = self.sources.file(reference.name)
        try:
            if path is None:
                raise FileNotFoundError(reference.name)
            _check_file(path)
            file = self._file(path, path.stem)
        except (WeightsError, DataError) as problem:
            raise how.refused(reference, str(problem)) from None
        except OSError as error:
            raise how.refused(reference, f"cannot be read ({error.strerror or 'it is gone'})") from None
        how.accept(file)
        return file

    def _file(self, path: Path, name: str) -> LoraFile:
        found = self.memo.of(path)
        return LoraFile(name, path, found.sha256, found.tensors)

    def _cached(self, reference: Reference, how: Fetch) -> LoraFile | None:
        """What an earlier request downloaded without a token, or with the same one."""
        token = how.tokens.of(reference.source)
        for key in dict.fromkeys((_key(reference), _key(reference, token))):
            if (kept := self.cache.find(key)) is None:
                continue
            try:
                file = self._file(self.cache.path(kept.sha256), kept.name)
            except OSError:  # deleted by another process
                continue
            if file.sha256 == kept.sha256:
                how.accept(file)
                return file
            self.cache.forget(kept.sha256)
        return None

    def _fetched(self, reference: Reference, how: Fetch) -> LoraFile:
        """The file after its download, by this process or by another one that was faster."""
        token = how.tokens.of(reference.source)
        key = _key(reference, token)
        try:
            with self.cache.making(key, how.check) as folder:
                if file := self._cached(reference, how):
                    return file
                return self._download(reference, token, key, folder, how)
        except StorageError as problem:
            raise how.refused(reference, f"cannot be kept: {problem}") from None
        except OSError as error:
            raise how.refused(reference, f"cannot be written ({error.strerror}); check lora_cache") from None

    def _download(self, reference: Reference, token: str, key: str, folder: Path, how: Fetch) -> LoraFile:
        from modules.lora.files.archive import ArchiveError
        from modules.lora.files.download import DownloadError
        from modules.lora.files.hosts import target_of

        downloader = self.downloader(how.check)

        def write(part: Path) -> Kept:
            target = target_of(reference, token, downloader)
            name = _received(target, part, downloader, self._room(folder, how), how.on_progress)
            _check_file(part)
            found = digests(part)
            if target.sha256 not in ("", found.sha256):
                raise WeightsError("has another checksum than its hub says; try again")
            kept = Kept(found.sha256, _plain(target.name or name) or found.sha256[:12], target.reference)
            how.accept(LoraFile(kept.name, part, found.sha256, found.tensors))
            return kept

        try:
            kept = self.cache.add(folder, key, write)
            self.cache.make_room(folder, 0, how.keep | {kept.sha256})  # now its size is known in any case
        except DownloadError as error:
            raise _told(error, reference, bool(token), how) from None
        except ArchiveError as problem:
            raise how.refused(reference, f"is no LoRA: its tar {problem}") from None
        except WeightsError as problem:
            raise how.refused(reference, str(problem)) from None
        return self._file(self.cache.path(kept.sha256), kept.name)

    def _room(self, folder: Path, how: Fetch) -> Callable[[int], None]:
        return lambda size: self.cache.make_room(folder, size, how.keep)


def _received(
    target: Target, part: Path, downloader: Downloader, make_room: Callable[[int], None], on_progress: OnProgress
) -> str:
    """Writes the safetensors file of a target into ``part``; gives the name that came with it."""
    from modules.lora.files.archive import extract_weights

    def save(file: BinaryIO) -> str:
        return downloader.save(target.place, file, make_room, on_progress)

    if not target.is_archive:
        with part.open("wb") as file:
            return save(file)
    with tempfile.TemporaryFile(dir=part.parent) as archive:  # without a name: nothing is left of it in any case
        save(archive)
        archive.seek(0)
        return extract_weights(archive, part)


def _check_file(path: Path) -> None:
    """Raises WeightsError and DataError for anything but a whole safetensors file, whatever its name."""
    require_regular(path)
    if is_pickle(path):
        raise WeightsError("is a pickle, which is not opened; give a safetensors file")
    try:
        check_safetensors(path, "it")
    except WeightsError:
        raise WeightsError("is damaged, cut off, or no safetensors file") from None


def _told(error: DownloadError, reference: Reference, with_token: bool, how: Fetch) -> Exception:
    """The error of a download for its user."""
    own = TOKEN_INPUTS.get(reference.source, "")
    if error.status in (401, 403) and own:
        problem = f"the token in {own} is refused" if with_token else f"is not there, or asks for a token; give {own}"
    elif error.status == 404:
        problem = "is not there"
    else:
        problem = f"cannot be fetched: its host {error}"
    told = how.refused(reference, problem)
    return NotThereError(told.problem) if error.status in (401, 404) else told


def _key(reference: Reference, token: str = "") -> str:
    """A name for the entry of a reference. What a token opens is found only with that token."""
    return hashlib.sha256("\0".join(filter(None, (reference.text, token))).encode()).hexdigest()[:32]


def _plain(name: str) -> str:
    """The name of a file as tags in prompts can hold it, "" where nothing is left."""
    stem = PurePosixPath(name).name
    for suffix in SUFFIXES:
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    plain = "".join(one if is_safe_name(f"x{one}") else "_" for one in stem)[:80].strip("._")
    return plain if is_safe_name(plain) else ""
