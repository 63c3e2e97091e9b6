"""Stable Diffusion XL and 1.5: two families with one way to draw."""

from __future__ import annotations

from modules.families.stable_diffusion.descriptor import SD15, SDXL

__all__ = ["SD15", "SDXL"]
