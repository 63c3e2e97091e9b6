"""A small picture of a model, wherever its parts lie: what two forms of one model must have in common."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from backend.checkpoints.packed_weight import unpack
from backend.core.settings import Settings
from backend.core.timeline import Timeline
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from modules.app.model_files import find_source
from modules.diffusion.base import DiffusionService
from modules.diffusion.denoise_request import DenoiseRequest
from modules.diffusion.monitor import Monitor
from modules.families.registry import FoundModel, identify

SIDE = 64


def found_model(model: Path | str, base: Path | str = "", weights: Path | None = None) -> FoundModel:
    """As a service finds it with these settings. Raises WeightsError in one line."""
    folder = {"weights_dir": str(weights)} if weights else {}
    found = identify(find_source(Settings(model=str(model), base_model=str(base), **folder)))  # type: ignore[arg-type]
    found.spec("fp32")
    return found


def service_of(found: FoundModel) -> DiffusionService:
    models = ModelCache(torch.device("cpu"))
    for name in (*found.profile.encoders, found.profile.denoiser, "vae"):
        models.register(name, partial(_loaded, found, name))
    return found.family.service(found.source, models, torch.float32, OomFallback(models), 1)


def drawn(found: FoundModel, steps: int = 1) -> np.ndarray:
    """H x W x 3, from 0 to 255."""
    request = DenoiseRequest(("a woman",), (1,), SIDE, SIDE, steps, 3.5)
    return np.asarray(service_of(found).generate(request, Monitor(Timeline()))[0]).astype(int)


def _loaded(found: FoundModel, name: str) -> torch.nn.Module:
    return unpack(found.family.load(found.source, name, torch.float32))
