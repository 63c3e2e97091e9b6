"""Texts from outside: how long they may be, how they are shown in one line, and how JSON is read from them."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

MAX_TEXT = 20_000
"""Characters of a text input at most; a long prompt has about two thousand."""
MAX_DEPTH = 16
"""How deep objects and lists may lie in each other."""
MAX_SHOWN = 60
MAX_LINE = 2000


def bounded(text: str, most: int = MAX_TEXT) -> str:
    """The text, with halves of surrogate pairs joined or replaced, so that everything behind can encode it.

    Raises ValueError where it has more than ``most`` characters.
    """
    if len(text) > most:
        raise ValueError(f"is {len(text)} characters long; at most {most} are read, shorten it")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "replace")
    return text


def says_something(text: str) -> bool:
    """Whether anything of it can be seen: more than spaces, marks of direction and characters without width."""
    return any(unicodedata.category(one)[0] not in "ZC" for one in text)


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    """At most so many characters of a text, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def one_line(text: str) -> str:
    """A text as one line that any terminal, log and JSON document can hold: line breaks, control characters, marks of
    direction and lone surrogates are shown as escapes."""
    line = shortened(text, MAX_LINE)
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def json_from(text: str, finite: bool = False) -> Any:
    """The value of a JSON text. ``finite`` refuses NaN and Infinity, which Python reads and the standard does not have.

    Raises ValueError, in words that follow the name of an input, for what is no JSON, a name that stands twice in one
    object, and more than ``MAX_DEPTH`` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refused if finite else float)
    except json.JSONDecodeError as error:
        where = f"in line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"is not valid JSON {where}") from None
    except _Refused as problem:
        raise ValueError(str(problem)) from None
    except RecursionError:
        raise ValueError(f"is not valid JSON: more than {MAX_DEPTH} levels deep") from None
    except ValueError:  # a number of thousands of digits
        raise ValueError("is not valid JSON: a number has too many digits") from None
    if _deeper(value, MAX_DEPTH):
        raise ValueError(f"is not valid JSON: more than {MAX_DEPTH} levels deep")
    return value


class _Refused(ValueError):
    """What Python's reader takes and this one does not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise _Refused(f"has '{shortened(name)}' twice in one object; leave one out")
        values[name] = value
    return values


def _refused(name: str) -> None:
    raise _Refused(f"is not valid JSON: {name} is no number there")


def _deeper(value: object, levels: int) -> bool:
    """Whether objects and lists lie deeper in each other than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(one, levels - 1) for one in inner))
