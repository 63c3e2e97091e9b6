"""How an ``AutoencoderKL`` is used for a while: in tiles, and with a check before each piece of its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backend.core.cancellation import Check

TILING = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
"""The attributes by which it works in tiles."""


@contextmanager
def in_tiles(vae: Any, side: int, latent_factor: int) -> Iterator[None]:
    """Inside, it works in tiles of so many pixels a side."""
    before = {attribute: getattr(vae, attribute) for attribute in TILING}
    vae.use_tiling, vae.tile_sample_min_size = True, side
    vae.tile_latent_min_size = side // latent_factor
    try:
        yield
    finally:
        for attribute, value in before.items():  # the plan may have asked for tiles of another size
            setattr(vae, attribute, value)


@contextmanager
def checked(vae: Any, check: Check) -> Iterator[None]:
    """Inside, ``check`` is called before every picture or tile that it encodes or decodes."""
    hooks = [part.register_forward_pre_hook(lambda module, inputs: check()) for part in (vae.encoder, vae.decoder)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
