"""Units of memory, and bytes as people read them."""

from __future__ import annotations

GIB = 2**30


def format_bytes(count: int) -> str:
    """Bytes in powers of ten, with one digit after the point: "23.8 GB", "1.6 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
