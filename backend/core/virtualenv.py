"""What ``scripts/bootstrap`` needs Python for. It runs this file by itself, before any package is installed:

python virtualenv.py missing FILE       prints the pins of a list of requirements that this Python lacks, one a line
python virtualenv.py relocate NEW NAME    makes the scripts in the environment NEW call the Python of NAME
python virtualenv.py exchange A B       exchanges two folders in one step; fails where the system cannot
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of the system's headers


def missing(requirements: Path) -> list[str]:
    """The pins (``name==version``) of a list, and of the lists that it includes, that are not installed.

    A pin without a local version such as ``+cpu`` is met by every build of that version. Of the conditions that may
    follow a pin, ``python_version >= "3.13"`` is known.
    """
    return [pin for pin in _pins(requirements) if not _is_installed(*pin.split("=="))]


def relocate(environment: Path, name: str) -> None:
    """Replaces the path of ``environment`` by that of ``name`` beside it, in its scripts and its configuration.

    An environment knows its own path only there. A file is replaced as a whole, because it may be a hard link to that
    of another environment.
    """
    old = str(environment.resolve()).encode()
    new = str(environment.resolve().with_name(name)).encode()
    for file in (*environment.glob("bin/*"), environment / "pyvenv.cfg"):
        if file.is_symlink() or not file.is_file():
            continue
        content = file.read_bytes()
        changed = content.replace(old, new)
        if changed != content:
            part = file.with_name(f"{file.name}.part")
            part.write_bytes(changed)
            shutil.copymode(file, part)
            part.replace(file)


def exchange(one: str, other: str) -> None:
    """Exchanges the names of two folders, so that each is there at every moment. Raises OSError."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError("the C library has no renameat2")
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _pins(requirements: Path) -> Iterator[str]:
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if included := re.fullmatch(r"-r\s*(\S+)", line.strip()):
            yield from _pins(requirements.parent / included[1])
            continue
        pin = re.match(r'([\w.-]+==[^\s;#]+)(?:\s*;\s*python_version\s*>=\s*"3\.(\d+)")?', line)
        if pin and sys.version_info >= (3, int(pin[2] or 0)):
            yield pin[1]


def _is_installed(name: str, wanted: str) -> bool:
    try:
        there = version(name)
    except PackageNotFoundError:
        return False
    return wanted in (there, there.partition("+")[0])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["missing", file]:
            sys.stdout.writelines(f"{pin}\n" for pin in missing(Path(file)))
        case ["relocate", folder, name]:
            relocate(Path(folder), name)
        case ["exchange", one, other]:
            exchange(one, other)
