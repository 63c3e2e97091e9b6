"""The one safetensors file in a tar, as Replicate's training packs it. Nothing else of the tar is written anywhere."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO

from modules.lora.files.references import SUFFIXES

MAX_MEMBERS = 10_000
MAX_READ = 2**23
"""Bytes of one read: a header of more would be held in memory as a whole."""


class ArchiveError(Exception):
    """Why a tar gives no LoRA, in words that follow "its tar"."""


class _Careful(io.RawIOBase):
    """A file that refuses to read much at once, as a header that claims to be huge asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise ArchiveError("has a header that is too large")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def extract_weights(archive: BinaryIO, target: Path) -> str:
    """Copies the only safetensors file of a tar to ``target`` and returns its name, without folders.

    Raises :class:`ArchiveError` for a tar that is damaged or compressed, that has links, devices or names outside of
    itself, or another number of such files, and OSError.
    """
    try:
        with tarfile.open(fileobj=_Careful(archive), mode="r:") as tar:
            member = _only_weights(tar)
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            with target.open("wb") as file:
                shutil.copyfileobj(content, file, 2**20)
            if target.stat().st_size != member.size:
                raise ArchiveError("is cut off")
            return Path(member.name).name
    except (tarfile.TarError, EOFError, ValueError) as problem:  # ValueError: numbers and texts of headers
        raise ArchiveError("is damaged, compressed, or no tar") from problem


def _only_weights(tar: tarfile.TarFile) -> tarfile.TarInfo:
    found: list[tarfile.TarInfo] = []
    for number, member in enumerate(tar):
        if number >= MAX_MEMBERS:
            raise ArchiveError(f"has more than {MAX_MEMBERS} entries")
        _check_member(member)
        if member.isreg() and member.name.lower().endswith(SUFFIXES):
            found.append(member)
    if len(found) != 1:
        raise ArchiveError(f"holds {len(found) or 'no'} safetensors files; it must hold exactly one")
    return found[0]


def _check_member(member: tarfile.TarInfo) -> None:
    """Raises :class:`ArchiveError` for what an honest tar of weights does not have."""
    try:
        tarfile.data_filter(member, "/nowhere")
    except tarfile.FilterError:
        raise ArchiveError("has names that lead out of it") from None
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise ArchiveError("has links, devices or holes; pack the file alone")
