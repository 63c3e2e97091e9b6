"""Z-Image: Turbo, the base model, and models of their shape."""

from __future__ import annotations

from modules.families.z_image.descriptor import Z_IMAGE

__all__ = ["Z_IMAGE"]
