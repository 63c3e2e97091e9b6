"""Bytes as people read them."""

from __future__ import annotations

import pytest

from backend.core.units import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.0 MB"), (1_650_000, "1.6 MB"), (99_999_999, "100.0 MB"), (10**8, "0.1 GB"), (23_802_816_640, "23.8 GB")],
)
def test_gigabytes_from_a_tenth_on_megabytes_below(count: int, text: str) -> None:
    assert format_bytes(count) == text
