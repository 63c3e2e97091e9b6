"""One prediction by the service, with its metrics and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.pictures import PROMPT
from support.requests_data import INPUTS

from modules.app.service import Service
from modules.pipeline.base import no_progress


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int16)


def predicted(service: Service, **changes: Any) -> tuple[list[Image.Image], dict[str, float], list[Path]]:
    metrics: dict[str, float] = {}
    files = service.predict(
        {**INPUTS, "prompt": PROMPT, "num_inference_steps": 4, "output_format": "png", **changes},
        metrics.__setitem__,
        no_progress,
    )
    return [Image.open(file).convert("RGB") for file in files], metrics, files
