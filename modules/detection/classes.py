"""The classes that a detector tells apart, and what ``ad_model_classes`` may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

from backend.core.errors import nearest
from backend.core.texts import shortened

TEXT_MODEL = "clip-vit-base-patch32"
"""Folder under ``weights/`` of the text model that encodes class names for a YOLO-World:
openai/clip-vit-base-patch32, in transformers' form."""
NO_SAM2 = "SAM 2 is not installed; leave it out, or put sam2.1_b.pt of ultralytics under weights/"
"""The error for a request that asks for outlines."""
MAX_CLASSES = 200
"""How many names may be asked for; a usual detector has 80."""
MAX_LISTED = 8
"""How many classes an error names at most."""


@dataclass(frozen=True)
class ClassSet:
    """``classes`` by number.

    ``world`` is whether the detector is a YOLO-World, which can look for other classes by name. ``open_vocabulary`` is
    whether it can do so here, because its text model is installed. ``outlines`` is whether SAM 2 is installed, which
    makes masks of its boxes.
    """

    classes: tuple[str, ...]
    world: bool = False
    open_vocabulary: bool = False
    outlines: bool = False

    def parse(self, text: str) -> tuple[str, ...]:
        """The classes in a text with commas between them, each once; none for a blank text."""
        return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))

    def problem(self, text: str) -> str:
        """Why these classes cannot be looked for, "" when they can."""
        if len(self.parse(text)) > MAX_CLASSES:
            return f"{len(self.parse(text))} names are too many; at most {MAX_CLASSES} are looked for"
        unknown = [name for name in self.parse(text) if name not in self.classes]
        if not unknown or self.open_vocabulary:
            return ""
        listed = ", ".join(self.classes[:MAX_LISTED]) + (
            f" and {len(self.classes) - MAX_LISTED} more" if len(self.classes) > MAX_LISTED else ""
        )
        advice = f"; for other words put openai/{TEXT_MODEL} under weights/{TEXT_MODEL}" if self.world else ""
        return f"'{shortened(unknown[0])}' is none of its classes{nearest(unknown[0], self.classes)}: {listed}{advice}"
