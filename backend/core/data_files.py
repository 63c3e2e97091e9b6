"""Files with data that somebody else wrote: read up to a limit, and JSON up to a depth.

A configuration may be cut, deep, endless or not a file at all: opening a named pipe would wait for ever. Whatever is
wrong is a :class:`DataError`, whose text goes behind the file's name. Pure Python, so that everything may read with it.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

MAX_BYTES = 2**22
"""Of a configuration. The longest that models have, with all added words of a tokenizer, take 1.2 MB."""
MAX_DEPTH = 64
"""Of lists and objects inside each other."""


class DataError(ValueError):
    """Why a file cannot be read: "is larger than 4 MiB"."""


def require_regular(path: Path) -> int:
    """The size in bytes of a file, also of one behind a link. Raises FileNotFoundError, and :class:`DataError` for what
    is no file: a folder, a named pipe, a device."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:  # links in a circle, a folder that may not be entered
        raise DataError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError("is no regular file")
    return status.st_size


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises FileNotFoundError and :class:`DataError`."""
    try:
        # a pipe that takes the file's place after the check would wait for a writer without the flag
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError("is no regular file")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    if len(content) > limit:
        raise DataError(f"is larger than {limit // 1024} KiB")
    return content


def parse_json(content: bytes) -> dict[str, object]:
    """A JSON object in UTF-8. Raises :class:`DataError`."""
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError("is damaged (not UTF-8)") from None
    except json.JSONDecodeError as error:
        raise DataError(f"is damaged (not JSON in line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise DataError(f"is nested more than {MAX_DEPTH} deep") from None
    except ValueError:  # a number with thousands of digits
        raise DataError("is damaged (a number is too long)") from None
    if not isinstance(data, dict):
        raise DataError("does not hold a JSON object")
    require_shallow(data)
    return data


def require_shallow(data: object) -> None:
    """Raises :class:`DataError` for lists and objects more than :data:`MAX_DEPTH` deep."""
    level: list[object] = [data]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise DataError(f"is nested more than {MAX_DEPTH} deep")


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, object]:
    """The JSON object in a file. Raises FileNotFoundError and :class:`DataError`."""
    return parse_json(read_limited(path, limit))
