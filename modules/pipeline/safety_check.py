"""The stage that leaves out pictures that are not to be given out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from backend.core.errors import UserError
from modules.pipeline.base import ImageBatch, Services, Stage
from modules.request.image_request import ImageRequest
from modules.safety.discovery import NO_SAFETY_CHECKER, SAFETY_CHECKER

if TYPE_CHECKING:
    from modules.safety.service import SafetyService

logger = logging.getLogger(__name__)


class NoSafePicture(UserError):
    """The safety checker objects to every picture of a request. The sentence is the one that callers of hosted Flux
    know."""

    def __init__(self) -> None:
        super().__init__("All generated images contained NSFW content. Try running it again with a different prompt.")


class SafetyCheckStage(Stage):
    """Leaves out every picture that the safety checker objects to, and says which and why."""

    name = "safety_check"
    inputs = ("disable_safety_checker",)
    off = True
    models = (SAFETY_CHECKER,)
    settings = (SAFETY_CHECKER, "safety_threshold", "safety_classes")
    without_models = NO_SAFETY_CHECKER

    def __init__(self, safety: SafetyService) -> None:
        self.safety = safety

    @classmethod
    def import_libraries(cls, scratch: Path) -> None:
        from modules.detection.yolo import offline_ultralytics

        offline_ultralytics(scratch / "ultralytics")
        import ultralytics.nn.tasks  # noqa: F401

    @classmethod
    def build(cls, services: Services) -> Self:
        assert services.safety is not None
        return cls(services.safety)

    @classmethod
    def options(cls, inputs: Mapping[str, Any]) -> object:
        return None if inputs["disable_safety_checker"] else True

    def run(self, batch: ImageBatch, request: ImageRequest) -> ImageBatch:
        """Raises :class:`NoSafePicture` when no picture is left."""
        objections = self.safety.objections([picture.image for picture in batch.pictures])
        notices, kept = [], []
        for number, (picture, found) in enumerate(zip(batch.pictures, objections, strict=True), start=1):
            if not found:
                kept.append(picture.changed(picture.image, **{"Safety checker": self.safety.label}))
                continue
            classes = ", ".join(f"{name} {score:.2f}" for name, score in found.items())
            notices.append(f"picture {number} (seed {picture.seed}) is left out: {self.safety.label} sees {classes}")
            logger.warning("%s", notices[-1])
        if not kept:
            raise NoSafePicture
        metrics = {**batch.metrics, "safety_check.left_out": len(notices)}
        return replace(batch, pictures=tuple(kept), notices=(*batch.notices, *notices), metrics=metrics)
