"""The name and version of this package. ``pyproject.toml`` states them; everything else asks here."""

from __future__ import annotations

import tomllib
from functools import cache

from backend.core.files import ROOT


@cache
def version() -> str:
    """The version alone."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def name_and_version() -> str:
    """The name and the version: what ``--version`` prints and every picture says about its origin."""
    return f"cog-flux-adetailer {version()}"
