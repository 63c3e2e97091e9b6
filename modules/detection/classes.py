"""The classes that a detector tells apart, and what ``ad_model_classes`` may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

from backend.core.errors import nearest

TEXT_MODEL = "clip-vit-base-patch32"
"""Folder under ``weights/`` of the text model that a YOLO-World reads class names with:
openai/clip-vit-base-patch32, as transformers has it."""
LISTED = 8
"""Classes that an error names at most."""


@dataclass(frozen=True)
class ClassSet:
    """``classes`` by number. A YOLO-World (``world``) can be told others in words where its text model is there
    (``open_vocabulary``)."""

    classes: tuple[str, ...]
    world: bool = False
    open_vocabulary: bool = False

    def wanted(self, text: str) -> tuple[str, ...]:
        """The classes in a text with commas between them; none for a blank one."""
        return tuple(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))

    def objection(self, text: str) -> str:
        """Why these classes cannot be looked for, "" when they can."""
        unknown = [word for word in self.wanted(text) if word not in self.classes]
        if not unknown or self.open_vocabulary:
            return ""
        listed = ", ".join(self.classes[:LISTED]) + (
            f" and {len(self.classes) - LISTED} more" if len(self.classes) > LISTED else ""
        )
        bring = f"; for other words put openai/{TEXT_MODEL} under weights/{TEXT_MODEL}" if self.world else ""
        return f"'{unknown[0]}' is none of its classes{nearest(unknown[0], self.classes)}: {listed}{bring}"
