"""The stages in the order in which they run. A new stage is added here."""

from __future__ import annotations

from modules.pipeline.adetailer import AdetailerStage
from modules.pipeline.base import Stage
from modules.pipeline.face_restore import FaceRestoreStage
from modules.pipeline.generate import GenerateStage
from modules.pipeline.hires import HiresStage
from modules.pipeline.safety_check import SafetyCheckStage
from modules.pipeline.upscale import UpscaleStage

STAGES: tuple[type[Stage], ...] = (
    GenerateStage,
    HiresStage,
    AdetailerStage,
    UpscaleStage,
    FaceRestoreStage,
    SafetyCheckStage,
)
