"""Which upscalers are there, and which restorer of faces: the names that the input ``upscaler`` takes, and their files.

Light: nothing is read but headers, and the files of the folder for any upscaler.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

from safetensors import safe_open

from backend.core.errors import WeightsError
from backend.core.settings import Settings
from backend.weights.resolver import EMBEDDED, checked_file, resolve_file, safe_form

logger = logging.getLogger(__name__)

PUBLISHED = ("ESRGAN_4x.pth", "4x-UltraSharp.pth")
"""Those of the manifest; each is used where its file lies under ``weights/``."""
OWN = "upscaler.safetensors"
FOLDER = "upscalers"
"""Folder under ``weights/`` for any other upscaler that spandrel knows."""
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
"""Of the files that are looked at there."""
FACE_RESTORERS = ("GFPGANv1.4.pth", "GFPGANv1.3.pth", "RestoreFormer.pth", "RestoreFormer.ckpt")
"""What "auto" takes, best first, where one lies under ``weights/``."""
FACE_RESTORER = "face_restorer"
"""What the cache and the memory plan call that one."""
FIRST = "upscaler"
"""What the cache and the memory plan call the default one."""


def find_upscalers(settings: Settings) -> dict[str, Path]:
    """The files of all upscalers that are there, by name (the file's, without its ending); the first is the default.

    One of the folder that cannot be used, and that the setting ``upscaler`` does not name, is left out with a warning.

    Raises :class:`~backend.core.errors.WeightsError` where the setting ``upscaler`` names one that is missing, or
    another file is not what was installed.
    """
    weights = settings.weights_path
    first = resolve_file("upscaler", settings.upscaler, (PUBLISHED[0], OWN), settings)
    found = {first.stem: first}
    for path in (weights / name for name in (*PUBLISHED, f"{EMBEDDED}/{OWN}")):
        if path.is_file():
            found.setdefault(path.stem, checked_file(path, settings))
    for path in sorted((weights / FOLDER).glob("*")):
        if path.suffix.lower() in SUFFIXES and path.stem not in found and is_upscaler(path, settings):
            found[path.stem] = path
    return {name: safe_form(path, settings) for name, path in found.items()}


def is_upscaler(path: Path, settings: Settings) -> bool:
    """Whether the file can be used; if not, a warning says why. It is read whole, in tenths of a second: no header
    tells what a network does."""
    from modules.upscaling.tiled import read_upscaler  # with torch, which only those who have such a file wait for

    try:
        read_upscaler(checked_file(path, settings))
    except (WeightsError, OSError) as error:
        logger.warning("upscaler left out: %s", error)
        return False
    return True


def find_face_restorer(settings: Settings) -> Path | None:
    """The file that the setting ``face_restorer`` names; with "auto" the best that is there, or None.

    Raises :class:`~backend.core.errors.WeightsError` where it names one that is missing, or the file is not what was
    installed.
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


def upscaler_parameters(path: Path) -> int:
    """How many weights of the file will be on the device. Those of a checkpoint are taken for single precision, as
    ESRGAN's are saved."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 4
    with safe_open(path, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())


def cached_as(names: tuple[str, ...]) -> dict[str, str]:
    """By name what the model cache calls each."""
    return {name: f"{FIRST} {name}" if index else FIRST for index, name in enumerate(names)}
