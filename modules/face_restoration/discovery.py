"""Which face restorer is installed. Nothing is read but headers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backend.core.settings import Settings
from backend.weights.found_files import FoundFiles
from backend.weights.resolver import checked_file, is_vouched_for, resolve_file, safe_form

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
    if wanted != "auto":
        return (
            safe_form(resolve_file("face_restorer", wanted, (), settings, tensors_only=True), settings)
            if wanted
            else None
        )
    found = FoundFiles("face restorer")
    for name in FACE_RESTORERS:
        if not found and (path := settings.weights_path / name).is_file():
            found.add(name, path, settings, partial(check_face_restorer, settings=settings))
    return next((safe_form(path, settings) for path in found.values()), None)


def check_face_restorer(path: Path, settings: Settings) -> None:
    """Raises :class:`~backend.core.errors.WeightsError` for a file that cannot be used; all of one is read that nobody
    vouches for."""
    checked_file(path, settings, tensors_only=True)
    if not is_vouched_for(path, settings):
        from modules.face_restoration.network import load_face_restorer  # imports torch

        load_face_restorer(path)
