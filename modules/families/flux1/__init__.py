"""FLUX.1: dev, schnell, and models of their shape."""

from __future__ import annotations

from modules.families.flux1.descriptor import FLUX1

__all__ = ["FLUX1"]
