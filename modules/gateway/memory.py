"""Memory of this process that is not needed any more."""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it


def give_back() -> None:
    """Gives free memory back to the system. The C library keeps pieces of up to 32 MB, such as those of a decoded
    picture, for each of its threads."""
    if _TRIM is not None:
        _TRIM(0)
