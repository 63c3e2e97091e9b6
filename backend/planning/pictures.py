"""Host memory that the pictures of a request take, beside the models. Pure, without torch."""

from __future__ import annotations

GIVEN_BYTES, UPSCALED_BYTES = 20, 40
"""For a pixel: of a picture that is read, repainted and written, and of one that the upscaler makes of it. Measured: 18
and 38 (``python -m bench.quality.finished_photo``)."""


def picture_bytes(size: tuple[int, int], finished: tuple[int, int], count: int = 1) -> int:
    """At the worst moment, for ``count`` pictures of this width and height that become ``finished`` ones."""
    given, made = size[0] * size[1], finished[0] * finished[1]
    return count * (GIVEN_BYTES * given + (UPSCALED_BYTES * made if finished != size else 0))
