"""Model families as requests see them, and inputs with their defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backend.api.input_schema import InputSchema
from modules.detection.classes import ClassSet
from modules.diffusion.profile import ModelProfile
from modules.families.flux1 import FLUX1
from modules.families.stable_diffusion import SDXL as SDXL_FAMILY

EMBEDDED = ModelProfile("embedded", 256, 40, 16, 16, steps=28, guidance=3.5, inputs=FLUX1.inputs)
SCHNELL = ModelProfile("schnell", 1024, 256, 8, 16, steps=4, guidance=3.5, inputs=replace(FLUX1.inputs, guidance=None))


SDXL = ModelProfile("sdxl", 1024, 77, 8, 4, steps=30, guidance=5.0, inputs=SDXL_FAMILY.inputs, denoiser="unet")


DETECTORS = {"face_yolov8n.pt": ClassSet(("face",))}


INPUTS: dict[str, Any] = {**InputSchema().defaults, "prompt": "a fox", "seed": 0}
