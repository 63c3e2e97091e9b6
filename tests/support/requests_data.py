"""Model families as requests see them, and inputs with their defaults."""

from __future__ import annotations

from typing import Any

from backend.api.input_schema import InputSchema
from modules.detection.classes import ClassSet
from modules.families.family import Family

EMBEDDED = Family("embedded", native=256, tokens=40, latent_factor=16, distilled_guidance=True)
SCHNELL = Family("schnell", native=1024, tokens=256, latent_factor=8, distilled_guidance=False, steps=4)


SDXL = Family(
    "sdxl",
    native=1024,
    tokens=77,
    latent_factor=8,
    distilled_guidance=False,
    kind="sdxl",
    latent_channels=4,
    steps=30,
    guidance=5.0,
)


DETECTORS = {"face_yolov8n.pt": ClassSet(("face",))}


INPUTS: dict[str, Any] = {**InputSchema().defaults, "prompt": "a fox", "seed": 0}
