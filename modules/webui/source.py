"""From what the tabs hold to the inputs ``image`` and ``mask``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.core.errors import InputError

TEXT, IMAGE, INPAINT, FINISH = "Text", "Image", "Inpaint", "Finish"
TABS = (TEXT, IMAGE, INPAINT, FINISH)


def source_inputs(tab: str, image: str | None, editor: Mapping[str, Any] | None, finish: str | None) -> dict[str, Any]:
    """The inputs of a tab. ``editor`` is what Gradio's ImageEditor gives: a background, and layers that are opaque
    where somebody has painted.

    Raises :class:`InputError`, which names the tab's picture, where it has none.
    """
    if tab == IMAGE:
        return {"image": Path(_needed(image, "the picture to start from"))}
    if tab == FINISH:
        return {"image": Path(_needed(finish, "the picture to finish")), "prompt_strength": 0.0}
    if tab == INPAINT:
        return _painted(editor or {})
    return {}


def _needed(picture: Any, what: str) -> Any:
    if picture is None:
        raise InputError("image", f"is missing; drop {what} here")
    return picture


def _painted(editor: Mapping[str, Any]) -> dict[str, Any]:
    background = _needed(editor.get("background"), "the picture to paint on")
    layers = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in editor.get("layers") or ()]
    if not any(layer.any() for layer in layers):
        raise InputError("mask", "is empty; paint over what should be repainted")
    mask = Image.fromarray(np.where(np.max(layers, axis=0) > 0, 255, 0).astype(np.uint8))
    folder = Path(tempfile.mkdtemp(prefix="painted-"))
    files = {"image": folder / "image.png", "mask": folder / "mask.png"}
    background.convert("RGB").save(files["image"], compress_level=1)
    mask.resize(background.size, Image.Resampling.NEAREST).save(files["mask"], compress_level=1)
    return dict(files)
