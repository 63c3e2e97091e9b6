"""Models for the memory plan: the published ones, and the embedded one from its files."""

from __future__ import annotations

from pathlib import Path

from backend.core.settings import ROOT
from backend.planning.companions import with_embedded_companions
from backend.planning.model_specs import ModelSpec
from modules.families.registry import identify, known_models
from modules.families.source import Source

KNOWN = known_models()
FLUX_DEV, FLUX_SCHNELL = KNOWN["flux-dev"], KNOWN["flux-schnell"]


def embedded_spec(folder: Path = ROOT / "weights" / "embedded") -> ModelSpec:
    """The model in ``folder/flux``, computing in float32, with the folder's detectors and upscaler."""
    model = identify(Source(folder / "flux"))
    return with_embedded_companions(model.spec("fp32"), folder, "fp32")
