"""What a file can be in place of what its name says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from backend.checkpoints.config import MAX_TABLE


def content(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        before = path.read_bytes()
        path.unlink()
        path.write_bytes(change(before))

    return damage


def replaced(put: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        put(path)

    return damage


def huge(path: Path) -> None:
    """A file of holes that is longer than any table, as a download that never ends."""
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(MAX_TABLE + 1)


DAMAGES: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {
        "empty": content(lambda before: b""),
        "cut": content(lambda before: before[: len(before) // 2]),
        "not UTF-8": content(lambda before: b"\xff\xfe" + before),
        "zeros": content(lambda before: bytes(len(before))),
        "deep lists": content(lambda before: b"[" * 100_000 + b"]" * 100_000),
        "deep objects": content(lambda before: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "a list": content(lambda before: b"[1, 2]"),
        "null": content(lambda before: b"null"),
        "a long number": content(lambda before: b'{"a": ' + b"9" * 10_000 + b"}"),
        "a web page": content(lambda before: b"<!DOCTYPE html><html><body>404</body></html>"),
        "huge": replaced(huge),
        "a folder": replaced(Path.mkdir),
        "a named pipe": replaced(os.mkfifo),
        "an endless device": replaced(lambda path: path.symlink_to("/dev/zero")),
        "a link to itself": replaced(lambda path: path.symlink_to(path)),
        "a link to nothing": replaced(lambda path: path.symlink_to("nothing")),
    }
)
"""Each takes the path of a good file."""


def linked_copy(source: Path, target: Path) -> Path:
    """A copy of a model's folder whose weights are links, so that it takes no time."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            copy.symlink_to(path)
        elif path.is_file():
            copy.write_bytes(path.read_bytes())
    return target
