"""Which face restorer is installed. Nothing is read but headers."""

from __future__ import annotations

from pathlib import Path

from backend.core.settings import Settings
from backend.weights.resolver import resolve_file, safe_form

FACE_RESTORERS = ("GFPGANv1.4.pth", "GFPGANv1.3.pth", "RestoreFormer.pth", "RestoreFormer.ckpt")
"""What "auto" chooses from, best first, if one is under ``weights/``."""
FACE_RESTORER = "face_restorer"
"""Its name in the cache and the memory plan."""
NO_FACE_RESTORER = f"no face restorer is installed; leave it out, or put {FACE_RESTORERS[0]} under weights/"
"""The error for a request that asks for one."""


def find_face_restorer(settings: Settings) -> Path | None:
    """The file that the setting ``face_restorer`` names; with "auto" the best that is installed, or None.

    Raises :class:`~backend.core.errors.WeightsError` if it names a file that is missing, or the file is not the one
    that was installed.
    """
    wanted = settings.face_restorer
    names = (
        [name for name in FACE_RESTORERS if (settings.weights_path / name).is_file()]
        if wanted == "auto"
        else [wanted]
        if wanted
        else []
    )
    return safe_form(resolve_file("face_restorer", names[0], (), settings), settings) if names else None
