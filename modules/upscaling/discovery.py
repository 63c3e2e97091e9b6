"""Which upscalers are installed: the names that the input ``upscaler`` takes, and their files.

Only headers are read, and the files of the folder for other upscalers.
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
"""Those of the manifest; each is used if its file is under ``weights/``."""
OWN = "upscaler.safetensors"
FOLDER = "upscalers"
"""Folder under ``weights/`` for other upscalers that spandrel knows."""
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
"""Of the files that count there."""
FIRST = "upscaler"
"""The default upscaler's name in the cache and the memory plan."""


def find_upscalers(settings: Settings) -> dict[str, Path]:
    """The files of all installed upscalers, by name (the file's, without its suffix); the first is the default.

    A file of the folder that cannot be used is left out with a warning, unless the setting ``upscaler`` names it.

    Raises :class:`~backend.core.errors.WeightsError` if the setting ``upscaler`` names a file that is missing, or
    another file is not the one that was installed.
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
    """Whether the file can be used; if not, a warning says why. All of it is read, which takes tenths of a second: no
    header says what a network does."""
    from modules.upscaling.tiled import read_upscaler  # imports torch, which is needed only if there is such a file

    try:
        read_upscaler(checked_file(path, settings))
    except (WeightsError, OSError) as error:
        logger.warning("upscaler left out: %s", error)
        return False
    return True


def upscaler_parameters(path: Path) -> int:
    """How many parameters of the file will be on the device. A checkpoint is assumed to be in single precision, as
    ESRGAN is saved."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 4
    with safe_open(path, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())


def cached_as(names: tuple[str, ...]) -> dict[str, str]:
    """The name of each upscaler in the model cache, by its own name."""
    return {name: f"{FIRST} {name}" if index else FIRST for index, name in enumerate(names)}
