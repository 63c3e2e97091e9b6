"""The diffusion service of a whole service."""

from __future__ import annotations

from modules.app.service import Service
from modules.families.flux1.service import FluxService


def flux_of(service: Service) -> FluxService:
    return next(stage.service for stage in service.pipeline.stages if stage.name == "generate")  # type: ignore[attr-defined]
