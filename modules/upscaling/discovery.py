"""Which upscalers are installed: the names that the input ``upscaler`` takes, and their files.

Only headers are read, and the files of the folder for other upscalers.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from safetensors import safe_open

from backend.core.settings import Settings
from backend.weights.found_files import FoundFiles
from backend.weights.resolver import EMBEDDED, checked_file, is_vouched_for, resolve_file, safe_form

PUBLISHED = ("ESRGAN_4x.pth", "4x-UltraSharp.pth")
"""Those of the manifest; each is used if its file is under ``weights/``."""
OWN = "upscaler.safetensors"
FOLDER = "upscalers"
"""Folder under ``weights/`` for other upscalers that spandrel knows."""
SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
"""Of the files that count there."""
FIRST = "upscaler"
"""The default upscaler's name in the cache and the memory plan."""


def find_upscalers(settings: Settings) -> FoundFiles:
    """The files of all installed upscalers, by name (the file's, without its suffix); the first is the default.

    Raises :class:`~backend.core.errors.WeightsError` if the setting ``upscaler`` names a file that is missing, or a
    file is not the one that was installed.
    """
    weights, found = settings.weights_path, FoundFiles("upscaler")
    if settings.upscaler != "auto":
        first = resolve_file("upscaler", settings.upscaler, (), settings, tensors_only=True)
        found[first.stem] = first
    best, *others = PUBLISHED
    known = [path for name in (best, f"{EMBEDDED}/{OWN}", *others) if (path := weights / name).is_file()]
    added = [path for path in sorted((weights / FOLDER).glob("*")) if path.suffix.lower() in SUFFIXES]
    for path in (*known, *added):
        found.add(path.stem, path, settings, partial(check_upscaler, settings=settings))
    if not found:
        resolve_file("upscaler", "auto", (best, OWN), settings)  # which says what is missing
    for name, path in found.items():
        found[name] = safe_form(path, settings)
    return found


def check_upscaler(path: Path, settings: Settings) -> None:
    """Raises :class:`~backend.core.errors.WeightsError` for a file that cannot be used. Of one that nobody vouches for
    all is read, which takes tenths of a second: no header says what a network does."""
    checked_file(path, settings, tensors_only=True)
    if not is_vouched_for(path, settings):
        from modules.upscaling.tiled import read_upscaler  # imports torch, which is needed only if there is such a file

        read_upscaler(path)


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
