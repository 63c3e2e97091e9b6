"""Units of memory, and bytes as people read them."""

from __future__ import annotations

import re

from backend.core.errors import SettingsError

GIB = 2**30
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def format_bytes(count: int) -> str:
    """Bytes in powers of ten, with one digit after the point: "23.8 GB", "1.6 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def parse_bytes(text: str) -> int:
    """Bytes from "24GB", "23.5 GiB", "48MB" or a plain number; "/s" at the end is allowed. Raises
    :class:`SettingsError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]i?)?b?(?:/s)?", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise SettingsError(f"'{text}' is not an amount such as 24GB or 23.5GiB")
    return int(float(found[1]) * _UNITS[found[2] or ""])
