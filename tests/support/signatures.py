"""Whether functions of other libraries still take what we give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def assert_takes(function: Callable[..., Any], library: str, *names: str) -> None:
    """``function`` of ``library`` has parameters of these names, in this order."""
    parameters = [name for name in inspect.signature(function).parameters if name in names]
    assert parameters == list(names), (
        f"{library} {version(library)}: {function.__qualname__} takes {inspect.signature(function)}, not "
        f"{', '.join(names)}; look at what changed and adapt compat.py"
    )


def assert_has(holder: object, name: str, library: str) -> None:
    """``holder`` still has the attribute."""
    assert hasattr(holder, name), (
        f"{library} {version(library)}: {holder} has no '{name}' any more; look at what changed and adapt compat.py"
    )
