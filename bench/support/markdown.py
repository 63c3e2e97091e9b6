"""Rows of figures as a table for the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of at least one row; all have the columns of the first."""
    lines = [" | ".join(rows[0]), *(" | ".join(str(value) for value in row.values()) for row in rows)]
    return "\n".join([f"| {lines[0]} |", "|" + "---|" * len(rows[0]), *(f"| {line} |" for line in lines[1:])])
