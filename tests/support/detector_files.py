"""Detectors as ultralytics saves them, and a pickle that runs code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file


def unfused(weights: Path) -> Any:
    """The network as a training leaves it, for writing checkpoints."""
    from ultralytics.nn.tasks import DetectionModel

    network = DetectionModel(yaml.safe_load(weights.with_suffix(".yaml").read_text()), verbose=False)
    network.load_state_dict(load_file(weights))
    network.names = {0: "face"}
    return network.eval()


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")
